"""Every metric of attributions, with the passes that it needs; an attribution is given, its own passes do not count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.speed import peers
from experiments.speed.nets import Case
from experiments.speed.passes import Passes
from experiments.speed.rows import Row
from robustsigma import IntegratedGradients
from robustsigma.engine.attributors import Attribution
from robustsigma.engine.metrics import (
    AttributionMetric,
    CompletenessGap,
    Cost,
    Infidelity,
    InsertionDeletion,
    Localisation,
    Measured,
    PerformanceInformation,
    RelativeStandardError,
    SensitivityN,
    Subject,
    randomisation,
    shuffle_parameters,
    stability,
)
from robustsigma.engine.metrics.revealed import reveal

_RANDOM = IntegratedGradients(2, baseline="gaussian")


def _explained(case: Case) -> tuple[Case, Attribution]:
    few = case.first(case.scale.few)
    return few, _RANDOM(few.classifier, few.images, few.target, seed=few.seeds)


def _judging(case: Case, judge: Callable[[Subject], Any]) -> Callable[[], Any]:
    """Return a call that makes a subject, with a pass of each image, and judges on it."""
    masks = torch.zeros(len(case.images), *case.images.shape[2:], device=case.device)
    masks[:, : masks.shape[1] // 2] = 1
    return lambda: judge(Subject(case.classifier, case.images, case.target, masks=masks, seed=case.seeds))


def _row(case: Case, metric: AttributionMetric, forwards: int) -> Row:
    """Return the row of a metric that needs so many forward passes an image, that of the image itself beside."""
    few, attribution = _explained(case)
    count = len(few.images)

    def judge(subject: Subject) -> Measured:
        return metric(subject, attribution)

    passes = Passes(count * (forwards + 1), 0)
    return Row(repr(metric), count, _judging(few, judge), lambda _: passes)


def insertion_deletion(case: Case) -> Row:
    """Every point of both curves."""
    pixels = case.scale.size**2
    step = -(-pixels // 14)
    return _row(case, InsertionDeletion(step=step), 2 * (-(-pixels // step) + 1))


def pic(case: Case) -> Row:
    """Every threshold, the start and the end; what else it takes is interpolation and compression."""
    metric = PerformanceInformation(min_confidence=0.0)
    case = _gaining(case, metric)
    few, attribution = _explained(case)
    row = _row(case, metric, len(metric.thresholds) + 2)
    return replace(row, peers=(peers.pair_pic(few, metric, attribution.heatmap().double()),))


def _gaining(case: Case, metric: PerformanceInformation) -> Case:
    """Return the case with the classes that lose most by the blur: an image whose class gains is skipped by all."""
    ends = metric._ends(Subject(case.classifier, case.images, case.target, seed=case.seeds))
    pairs = zip(ends.images, ends.drawn, strict=True)
    blurred = np.stack([reveal(image, drawn, metric.interpolation) for image, drawn in pairs])
    starts = torch.as_tensor(blurred).permute(0, 3, 1, 2).to(case.images) / 255
    with torch.inference_mode():
        lost = case.plain(case.images).softmax(1) - case.plain(starts).softmax(1)
    return replace(case, target=lost.argmax(1).clone())


def sensitivity_n(case: Case) -> Row:
    """Every set of every share."""
    metric = SensitivityN(subsets=3)
    return _row(case, metric, 3 * len(metric.fractions))


def infidelity(case: Case) -> Row:
    """Every square."""
    few, attribution = _explained(case)
    metric = Infidelity(samples=8)
    return replace(_row(case, metric, 8), peers=(peers.captum_infidelity(few, metric, attribution.values),))


def stable(case: Case) -> Row:
    """The method's own, for each further seed."""
    few, attribution = _explained(case)
    call = _judging(few, lambda subject: stability(subject, _RANDOM, attribution))
    return Row(f"stability({_RANDOM!r})", len(few.images), call)


def randomised(case: Case) -> Row:
    """The method's own, on another network: the classifier's copy makes them, so that they are not counted."""
    few, attribution = _explained(case)
    shuffled = shuffle_parameters(few.classifier, 0)
    call = _judging(few, lambda subject: randomisation(subject, shuffled, _RANDOM, attribution, seed=few.seeds))
    count = len(few.images)
    return Row(f"randomisation({_RANDOM!r})", count, call, lambda _: Passes(count * (1 + 4), count * 2))


ROWS: dict[str, Callable[[Case], Row]] = {
    "InsertionDeletion": insertion_deletion,
    "SIC-AIC": pic,
    "SensitivityN": sensitivity_n,
    "Infidelity": infidelity,
    "Stability": stable,
    "Randomisation": randomised,
    "Localisation": lambda case: _row(case, Localisation(), 0),
    "CompletenessGap": lambda case: _row(case, CompletenessGap(), 0),
    "RelativeStderr": lambda case: _row(case, RelativeStandardError(), 0),
    "Cost": lambda case: _row(case, Cost(), 0),
}
