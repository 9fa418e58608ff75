"""Measures one attribution method on one batch: an array with a row per image for every quantity."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from robustsigma.engine.attributors import Attributor
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import wait
from robustsigma.engine.metrics import AttributionMetric, MetricContext
from robustsigma.engine.metrics.base import constant
from robustsigma.engine.metrics.ranking import tied_share
from robustsigma.engine.metrics.sanity_checks import max_sensitivity, randomization, stability

Arrays = dict[str, np.ndarray]


def measure(
    context: MetricContext,
    attributor: Attributor,
    metrics: Sequence[AttributionMetric],
    seeds: Tensor,
    shuffled: Classifier | None,
    stability_seeds: int,
    sensitivity_samples: int = 0,
) -> Arrays:
    """Return values as "value/NAME" and skips as "skip/NAME" (B,), curves as "curve/NAME" (B, K), maps and notes.

    Args:
        context: the batch.
        attributor: the method.
        metrics: what to measure.
        seeds: int64 (B,), of the method.
        shuffled: the network with shuffled weights, or None to leave out the sanity checks.
        stability_seeds: number of further seeds of the sanity checks.
        sensitivity_samples: noisy copies of each image for the max-sensitivity of the sanity checks; 0 leaves it out.
    """
    wait(context.images.device)
    start = time.perf_counter()
    result = attributor(context.classifier, context.images, context.target, seed=seeds)
    wait(context.images.device)
    seconds = (time.perf_counter() - start) / len(context)
    measured = [metric(context, result) for metric in metrics]
    if shuffled is not None:
        measured.append(stability(context, attributor, result, seeds=stability_seeds))
        measured.append(randomization(context, shuffled, attributor, result, seed=seeds))
        if sensitivity_samples:
            measured.append(max_sensitivity(context, attributor, result, seed=seeds, samples=sensitivity_samples))
    heat = result.heatmap()
    arrays: Arrays = {
        "value/seconds": np.full(len(context), seconds),
        "skip/seconds": np.zeros(len(context), dtype=np.int64),
        "note/converged": _numpy(result.all_converged()),
        "note/ties": _numpy(tied_share(heat)),
        "note/constant": _numpy(constant(heat)),
        "map": _numpy(result.heatmap("sum").float()),
    }
    for found in measured:
        for name, value in found.values.items():
            arrays[f"value/{name}"], arrays[f"skip/{name}"] = _numpy(value), _numpy(found.skipped(name))
        for name, curve in found.curves.items():
            arrays[f"curve/{name}"], arrays[f"grid/{name}"] = _numpy(curve.y), _numpy(curve.x)
            arrays[f"axes/{name}"] = np.array([curve.x_title, curve.y_title])
    return arrays


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array
