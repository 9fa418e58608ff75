"""Measures one attribution method on one batch: an array with a row per image for every quantity."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine.attributors import Attribution, Attributor
from robustsigma.engine.attributors.base import reduce_channels
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import wait
from robustsigma.engine.metrics import AttributionMetric, MetricContext, MetricResult, Skip
from robustsigma.engine.metrics.base import constant
from robustsigma.engine.metrics.diagnostics import ResultMetric
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
    measured.append(MetricResult({"seconds": torch.full((len(context),), seconds, dtype=torch.float64)}))
    return _arrays(result, result.all_converged(), measured)


def measure_maps(
    context: MetricContext, maps: Tensor, metrics: Sequence[AttributionMetric], sanity_checks: Sequence[str]
) -> Arrays:
    """Return the same of maps (B, C, H, W) that were made elsewhere: what needs their method is not measured."""
    names = ["seconds", *sanity_checks]
    measured = []
    for metric in metrics:
        if isinstance(metric, ResultMetric):
            names += [quantity.name for quantity in metric.quantities]
        else:
            measured.append(metric(context, maps))
    missing = torch.full_like(context.target, int(Skip.NOT_MEASURED))
    unknown = torch.full_like(missing, torch.nan, dtype=torch.float64)
    measured.append(MetricResult(dict.fromkeys(names, unknown), dict.fromkeys(names, missing)))
    return _arrays(maps, torch.ones_like(context.target, dtype=torch.bool), measured)


def _arrays(result: Attribution | Tensor, converged: Tensor, measured: Sequence[MetricResult]) -> Arrays:
    values = result.values if isinstance(result, Attribution) else result
    heat = reduce_channels(values, "abs_sum")
    arrays: Arrays = {
        "note/converged": _numpy(converged),
        "note/ties": _numpy(tied_share(heat)),
        "note/constant": _numpy(constant(heat)),
        "map": _numpy(reduce_channels(values, "sum").float()),
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
