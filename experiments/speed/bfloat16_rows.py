"""Gradient passes in bfloat16, which `Classifier(gradient_dtype=...)` asks for, beside full precision.

Forward passes alone stay in full precision, so that SIGMA's differences of scores do. What is compared is the time by
the image, and how far the ranks of the pixels are apart: 1 - Spearman's correlation of the two heatmaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from experiments.speed import attributor_rows
from experiments.speed.nets import Case
from experiments.speed.rows import Peer, Row
from robustsigma import Attribution, Attributor, IntegratedGradients
from robustsigma.engine.metrics.ranking import spearman


@contextmanager
def _bfloat16(case: Case) -> Iterator[None]:
    case.classifier.gradient_dtype = torch.bfloat16
    try:
        yield
    finally:
        case.classifier.gradient_dtype = None


def ranks_apart(ours: Attribution, theirs: Attribution) -> float:
    """Return 1 - the rank correlation of two sets of heatmaps, averaged over images."""
    return 1 - float(spearman(ours.heatmap(), theirs.heatmap()).mean())


def _row(case: Case, method: Attributor, points: Callable[[Attribution], Any], most: float) -> Row:
    def full() -> Attribution:
        return method(case.classifier, case.images, case.target, seed=case.seeds)

    def cast() -> Attribution:
        with _bfloat16(case):
            return full()

    peer = Peer("full precision", full, len(case.images), ranks_apart, most)
    return Row(f"{method!r}, bfloat16", len(case.images), cast, points, attributor_rows.reported, (peer,))


def ig(case: Case) -> Row:
    """Integrated Gradients."""
    few, steps = case.first(case.scale.few), case.scale.steps
    return _row(few, IntegratedGradients(steps), attributor_rows.points(few, steps, 2), 0.1)


def sigma(case: Case) -> Row:
    """SIGMA's walk: its confidences are those of the gradient passes, so that the weights are rounded too."""
    return _row(case, attributor_rows.walk(case), attributor_rows.walked(case), 0.5)


ROWS: dict[str, Callable[[Case], Row]] = {"IG-bfloat16": ig, "SIGMA-bfloat16": sigma}
