"""One method on one batch: everything that is measured, as arrays with a row for each image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from robustsigma.engine.attributors import Attributor
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import wait
from robustsigma.engine.metrics import AttributionMetric, MetricContext, MetricResult
from robustsigma.engine.metrics.base import constant
from robustsigma.engine.metrics.ranking import tied_share
from robustsigma.engine.metrics.sanity_checks import randomization, stability

Arrays = dict[str, np.ndarray]


class Task(NamedTuple):
    """What is judged.

    Attributes:
        subject: the batch.
        attributor: the method.
        seeds: int64 (B,), of the method.
        shuffled: the network without what it learned, or None where methods do not run again.
        stability_seeds: how often they do with other seeds.
    """

    subject: MetricContext
    attributor: Attributor
    seeds: Tensor
    shuffled: Classifier | None
    stability_seeds: int


def judge(task: Task, metrics: Sequence[AttributionMetric]) -> Arrays:
    """Return values as "value/NAME" and skips as "skip/NAME" (B,), curves as "curve/NAME" (B, K), and notes."""
    subject = task.subject
    wait(subject.images.device)
    start = time.perf_counter()
    result = task.attributor(subject.classifier, subject.images, subject.target, seed=task.seeds)
    wait(subject.images.device)
    seconds = (time.perf_counter() - start) / len(subject)
    measured: list[MetricResult] = [metric(subject, result) for metric in metrics]
    if task.shuffled is not None:
        measured.append(stability(subject, task.attributor, result, seeds=task.stability_seeds))
        measured.append(randomization(subject, task.shuffled, task.attributor, result, seed=task.seeds))
    heat = result.heatmap()
    return {
        **_flatten(measured),
        "value/seconds": np.full(len(subject), seconds),
        "skip/seconds": np.zeros(len(subject), dtype=np.int64),
        "note/converged": _numpy(result.all_converged()),
        "note/ties": _numpy(tied_share(heat)),
        "note/constant": _numpy(constant(heat)),
        "map": _numpy(result.heatmap("sum").float()),
    }


def _flatten(measured: Iterable[MetricResult]) -> Arrays:
    arrays: Arrays = {}
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
