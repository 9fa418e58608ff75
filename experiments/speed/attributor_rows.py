"""Every attributor of the public list, with the passes that its formula needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from experiments.speed import peers
from experiments.speed.nets import Case
from experiments.speed.passes import Passes
from experiments.speed.rows import Row
from robustsigma import (
    AGI,
    IDG,
    IG2,
    AttentionRollout,
    Attribution,
    Attributor,
    CrediblePath,
    ExpectedGradients,
    Gradient,
    GuidedIntegratedGradients,
    IntegratedGradients,
    LeftIntegratedGradients,
    RandomAttribution,
    Sigma,
)
from robustsigma.engine import noise


def reported(result: Attribution) -> Passes:
    """Return what a result says of its own passes."""
    return Passes(int(result.forwards.sum()), int(result.backwards.sum()))


def walk(case: Case) -> Sigma:
    """Return SIGMA's walk of a fixed number of steps: it never arrives."""
    scale = case.scale
    return Sigma(
        alpha=0.01, beta=0.1, objective="logit", epsilon=1e-30, paths=scale.paths, max_steps=scale.walk, patience=1000
    )


def _row(case: Case, method: Attributor, needed: Callable[[Attribution], Passes], *others: peers.Peer) -> Row:
    def call() -> Attribution:
        return method(case.classifier, case.images, case.target, seed=case.seeds)

    return Row(repr(method), len(case.images), call, needed, reported, others)


def points(case: Case, gradients: int, forwards: int) -> Callable[[Any], Passes]:
    """Return the passes of so many gradients an image, and of so many forward passes beside."""
    count = len(case.images)
    return lambda _: Passes(count * (gradients + forwards), count * gradients)


def walked(case: Case) -> Callable[[Attribution], Passes]:
    """Return the passes of SIGMA: three forward and a backward one a step (probes, new point), one at the start."""

    def needed(result: Attribution) -> Passes:
        steps = int(result.steps.sum())
        return Passes(3 * steps + len(case.images), steps)

    return needed


def sigma(case: Case) -> Row:
    """A walk of a fixed number of steps."""
    rule = walk(case)
    return _row(case, rule, walked(case), peers.sigma_one_by_one(case, rule))


def ig(case: Case) -> Row:
    """A gradient a point; the scores of both ends."""
    few, steps = case.first(case.scale.few), case.scale.steps
    rule = IntegratedGradients(steps)
    return _row(few, rule, points(few, steps, 2), peers.captum_ig(few, rule), peers.pair_ig(few, steps))


def left_ig(case: Case) -> Row:
    """As IG."""
    few, steps = case.first(case.scale.few), case.scale.steps
    return _row(few, LeftIntegratedGradients(steps), points(few, steps, 2))


def idg(case: Case) -> Row:
    """As IG, and the scores between the intervals."""
    few, steps = case.first(case.scale.few), case.scale.steps
    return _row(few, IDG(steps), points(few, steps, 2 + steps - 1))


def expected_gradients(case: Case) -> Row:
    """A gradient a draw, the score of the image, and of each reference that was drawn once: it reports how many."""
    few, draws = case.first(case.scale.few), 2 * case.scale.steps
    return _row(few, ExpectedGradients(draws), reported)


def guided_rule(case: Case) -> tuple[GuidedIntegratedGradients, torch.Tensor]:
    """Return Guided IG and where its path starts, (C, H, W)."""
    steps = max(2, case.scale.steps // 2)
    # From black, pixels that no step has moved yet leave pooling layers with equal values, of which rounding takes one.
    key = noise.fold(torch.zeros(1, dtype=torch.int64), "start")
    start = noise.uniform(key, tuple(case.images.shape[1:]), torch.float32)
    return GuidedIntegratedGradients(steps, fraction=0.25, max_dist=0.02, baseline=start.to(case.images)), start[0]


def guided_ig(case: Case) -> Row:
    """A gradient a step, and the score of the image."""
    rule, start = guided_rule(case)
    return _row(case, rule, points(case, rule.steps, 1), peers.pair_guided_ig(case, rule, start))


def _two_gradients(case: Case, shared: int) -> Callable[[Attribution], Passes]:
    """Return the passes of walks with two gradients at each point: of one forward pass. Its end needs a forward pass.

    The image, where all walks start, is one more; `shared` forward passes are made for all images together.
    """

    def needed(result: Attribution) -> Passes:
        steps, walked = int(result.steps.sum()), int((~result.confidence[..., 0].isnan()).sum())
        return Passes(steps + walked + len(case.images) + shared, 2 * steps)

    return needed


def ig2(case: Case) -> Row:
    """Two gradients a step and reference."""
    few, references = case.first(case.scale.few), 4
    return _row(few, IG2(steps=max(2, case.scale.steps // 4)), _two_gradients(few, references))


def agi(case: Case) -> Row:
    """Two gradients a step and false class."""
    few = case.first(case.scale.few)
    return _row(few, AGI(steps=max(2, case.scale.steps // 4), classes=4), _two_gradients(few, 0))


def credible_path(case: Case) -> Row:
    """A gradient a step of the search, a point, and at the image; these are what it reports."""
    few = case.first(case.scale.few)
    method = CrediblePath(steps=3 * max(1, case.scale.steps // 4), max_search=max(1, case.scale.steps // 4))
    return _row(few, method, reported)


def attention_rollout(case: Case) -> Row:
    """One forward pass."""
    return _row(case, AttentionRollout(), lambda _: Passes(len(case.images), 0))


def gradient(case: Case) -> Row:
    """One forward and one backward pass; ours makes another forward pass, which checks the network's logits."""
    return _row(case, Gradient(), points(case, 1, 0))


def random(case: Case) -> Row:
    """No pass; ours makes one forward pass, which checks the network's logits."""
    return _row(case, RandomAttribution(), lambda _: Passes())


ROWS: dict[str, Callable[[Case], Row]] = {
    "SIGMA": sigma,
    "IG": ig,
    "Left-IG": left_ig,
    "IDG": idg,
    "EG": expected_gradients,
    "Guided-IG": guided_ig,
    "IG2": ig2,
    "AGI": agi,
    "CrediblePath": credible_path,
    "AttentionRollout": attention_rollout,
    "Gradient": gradient,
    "Random": random,
}
