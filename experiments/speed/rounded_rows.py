"""Gradient passes that round, to TF32 or bfloat16, as `Classifier(gradient_dtype=...)` asks for.

Forward passes alone stay in full precision, so that SIGMA's differences of scores do. Beside full precision they are
compared by the time an image takes and by how far the ranks of the pixels are apart: 1 - Spearman's correlation of the
two heatmaps. Peers compute in full precision, and in double precision the same as ours without rounding; captum is also
let round to TF32, like any code on a GPU unless its user says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch

from experiments.speed import attributor_rows, peers
from experiments.speed.nets import Case
from experiments.speed.rows import Peer, Row
from robustsigma import Attribution, Attributor, IntegratedGradients
from robustsigma.engine.metrics.ranking import spearman
from robustsigma.engine.precision import tf32

Rounding = torch.dtype | Literal["tf32"]
GPU_ONLY = ("IG-tf32", "SIGMA-tf32")


@contextmanager
def _rounding(case: Case, to: Rounding) -> Iterator[None]:
    case.classifier.gradient_dtype = to
    try:
        yield
    finally:
        case.classifier.gradient_dtype = None


def ranks_apart(ours: Attribution, theirs: Attribution) -> float:
    """Return 1 - the rank correlation of two sets of heatmaps, averaged over images."""
    return 1 - float(spearman(ours.heatmap(), theirs.heatmap()).mean())


def _row(
    case: Case,
    method: Attributor,
    to: Rounding,
    points: Callable[[Attribution], Any],
    most: float,
    *others: Peer,
) -> Row:
    def full() -> Attribution:
        return method(case.classifier, case.images, case.target, seed=case.seeds)

    def rounded() -> Attribution:
        with _rounding(case, to):
            return full()

    peer = Peer("full precision", full, len(case.images), ranks_apart, most)
    said = f"{method!r}, {str(to).removeprefix('torch.')}"
    return Row(said, len(case.images), rounded, points, attributor_rows.reported, (peer, *others))


def _captum(case: Case, rule: IntegratedGradients) -> Peer:
    exact = peers.captum_ig(case, rule)

    def call() -> Any:
        with tf32():
            return exact.call()

    return replace(exact, name="captum in TF32", call=call, deviation=None)


def ig(case: Case, to: Rounding) -> Row:
    """Integrated Gradients."""
    few, steps = case.first(case.scale.few), case.scale.steps
    rule = IntegratedGradients(steps)
    others = (_captum(few, rule),) if to == "tf32" else (peers.captum_ig(few, rule),)
    most = 0.05 if to == "tf32" else 0.3
    return _row(few, rule, to, attributor_rows.points(few, steps, 2), most, *others)


def sigma(case: Case, to: Rounding) -> Row:
    """SIGMA's walk: its confidences are those of the gradient passes, so that the weights are rounded too."""
    rule = attributor_rows.walk(case)
    return _row(case, rule, to, attributor_rows.walked(case), 0.5, peers.sigma_one_by_one(case, rule))


def guided_ig(case: Case, to: Rounding) -> Row:
    """Guided IG: which pixels move next goes by the size of rounded gradients."""
    rule, start = attributor_rows.guided_rule(case)
    points = attributor_rows.points(case, rule.steps, 1)
    return _row(case, rule, to, points, 0.9, peers.pair_guided_ig(case, rule, start))


ROWS: dict[str, Callable[[Case], Row]] = {
    "IG-tf32": lambda case: ig(case, "tf32"),
    "SIGMA-tf32": lambda case: sigma(case, "tf32"),
    "Guided-IG-bfloat16": lambda case: guided_ig(case, torch.bfloat16),
    "IG-bfloat16": lambda case: ig(case, torch.bfloat16),
    "SIGMA-bfloat16": lambda case: sigma(case, torch.bfloat16),
}
