"""Guided Integrated Gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines
from robustsigma.engine.attributors.base import Attribution
from robustsigma.engine.attributors.baselines import Baseline
from robustsigma.engine.attributors.integrated_gradients import quadrature
from robustsigma.engine.attributors.path_methods import BaselineAttributor, Line, LineGradients
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score

_CLOSE = 1e-9  # lengths are equal where they differ by less than this, relatively or in pixel units


class _Path:
    """Points between baselines and images, features flat, (R, D) in float64.

    In float32 the rounding of a length is wider than `_CLOSE`, so that a path might never reach the wanted length.
    """

    def __init__(self, base: Tensor, images: Tensor, fraction: float, max_dist: float) -> None:
        self.base, self.goal = (t.flatten(1).double() for t in (base, images))
        self.delta = self.goal - self.base
        self.divisor = torch.where(self.delta != 0, self.delta, 1)
        self.point = self.base
        self.length = _length(self.delta)
        self.max_dist = max_dist
        # The lower quantile: an order statistic, of the same rank for every row.
        self.rank = math.floor(fraction * (self.base.shape[1] - 1)) + 1

    def advance(self, gradient: Tensor, alpha: float) -> Tensor:
        """Move until a share `alpha` of the L1 length is covered; return the change, (R, D).

        Features of the smallest |gradient| (R, D) go first, within `max_dist` of the straight line.
        """
        before = self.point
        low, high = max(alpha - self.max_dist, 0.0), min(alpha + self.max_dist, 1.0)
        most = torch.add(self.base, self.delta, alpha=high)
        late = (before - self.base) / self.divisor < low
        point = torch.where(late, torch.add(self.base, self.delta, alpha=low), before)
        wanted = self.length * (1 - alpha)
        # Features of infinite size do not move. Sizes keep the gradient's precision, which does not change their order.
        size = gradient.abs().masked_fill_(point == most, torch.inf)
        finite = torch.finfo(size.dtype).max
        active = torch.ones(len(point), dtype=torch.bool, device=point.device)
        # Every round moves at least one more feature to its end, or is the row's last.
        for _ in range(point.shape[1] + 2):
            left = _length(self.goal - point)
            active = active & ((left - wanted).abs() > _CLOSE * left.maximum(wanted).clamp(min=1))
            active = active & (size.amin(1) <= finite)
            if not active.any():
                break
            threshold = size.kthvalue(self.rank, 1).values.clamp(max=finite)
            chosen = size <= torch.where(active, threshold, -1)[:, None]
            step = torch.where(chosen, most - point, 0)
            room = _length(step)
            part = torch.where(room > 0, (left - wanted) / torch.where(room > 0, room, 1), torch.inf)
            point = torch.addcmul(point, part.clamp(0, 1)[:, None], step)
            active = active & (part > 1)
            if not active.any():
                break
            # Set exactly, whatever the sum rounds to.
            ended = chosen & (part > 1)[:, None]
            point = torch.where(ended, most, point)
            size.masked_fill_(ended, torch.inf)
        # The last step also covers what rounding has left.
        self.point = self.goal if alpha >= 1 else point
        return self.point - before


def _length(delta: Tensor) -> Tensor:
    """Return the L1 length of each row, (R,)."""
    return torch.linalg.vector_norm(delta, 1, dim=1)


@dataclass(frozen=True, eq=False)
class GuidedLine(Line):
    """A path that the gradients at its points lead to each image, with the settings of `GuidedIntegratedGradients`."""

    fraction: float = 1.0
    max_dist: float = 0.0

    def gradients(self, at: Tensor) -> Iterator[LineGradients]:
        """Yield the gradients at as many steps' starts as `at` (B, S) has points, with the step in float64."""
        path = _Path(self.base, self.images, self.fraction, self.max_dist)
        steps = at.shape[1]
        for step in range(steps):
            points = path.point.to(self.images).reshape(self.images.shape)
            logits, gradient = self.classifier.score_and_gradient(points, self.target, self.score)
            change = path.advance(gradient.flatten(1), (step + 1) / steps).reshape(self.images.shape)
            scores = target_score(logits, self.target, self.score).to(self.images.dtype)
            yield LineGradients(
                slice(None), slice(step, step + 1), change[:, None], scores[:, None], gradient.to(self.images)[:, None]
            )


@dataclass(frozen=True)
class GuidedIntegratedGradients(BaselineAttributor):
    """Guided IG: of all features, those of the smallest |dF/dx_i| move first (Kapishnikov et al., 2021, algorithm 1).

    The path leads from a baseline to the image in `steps` steps of equal L1 length, with a gradient each, and no
    feature's progress leaves the straight line's by more than `max_dist`. `values` sum to the drop of F up to the
    error of a Riemann sum at the steps' starts. Positions are kept in float64.

    Args:
        steps: number of steps. The defaults are those of the authors' code; their notebooks use 25, 0.5 and 1.0.
        fraction: share of the features that move at a time.
        max_dist: largest distance from the straight line, as a share of it; 0 follows it, 1 does not bound.
        baseline: where the path starts, as for `IntegratedGradients`.
        score: F. The authors' notebooks explain the softmax; on a saturated network log_prob keeps its gradients.

    Example:
        >>> GuidedIntegratedGradients(steps=20)(classifier, images, target).heatmap()
    """

    steps: int = 200
    fraction: float = 0.25
    max_dist: float = 0.02
    baseline: Baseline = "black"
    score: Score = "prob"

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("fraction", self.fraction, 0, 1)
        validation.number("max_dist", self.max_dist, 0, 1)

    def lines(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> list[Line]:
        """Return the guided path from each baseline, for methods that sum other things along it."""
        straight = super().lines(classifier, images, target, logits, seeds)
        return [GuidedLine(**vars(line), fraction=self.fraction, max_dist=self.max_dist) for line in straight]

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return Guided IG; `steps` forward and backward passes a baseline, and the image's own forward pass."""
        bases = torch.stack(baselines.make(self.baseline, images, seeds, classifier.bounds), 1)
        count, paths = bases.shape[:2]
        first = target_score(logits, target, self.score).to(images.dtype)
        repeated = (each.repeat_interleave(paths, 0) for each in (images, target, first))
        goal, at, high = repeated
        line = GuidedLine(
            classifier, goal, bases.flatten(0, 1), at, self.score, high, high, None, self.fraction, self.max_dist
        )
        values = torch.zeros_like(goal, dtype=torch.float64)
        curve = []
        for part in line.gradients(line.expanded(quadrature("left", self.steps)[0])):
            values.addcmul_(part.delta[:, 0], part.gradients[:, 0].double())
            curve.append(part.scores[:, 0])
        # From the image to the baseline, as every method's curve starts at the image.
        confidence = torch.stack([high, *reversed(curve)], 1).unflatten(0, (count, paths))
        shaped = values.to(images.dtype).reshape(bases.shape)
        maps = shaped.abs().sum(2)
        return Attribution(
            values=shaped.mean(1),
            target=target,
            endpoint=bases[:, 0],
            drop=first - confidence[:, :, -1].mean(1),
            confidence=confidence,
            steps=torch.full((count, paths), self.steps, device=images.device),
            converged=torch.ones(count, paths, dtype=torch.bool, device=images.device),
            forwards=torch.full((count,), paths * self.steps + 1, device=images.device),
            backwards=torch.full((count,), paths * self.steps, device=images.device),
            stderr=maps.std(1) / paths**0.5 if paths > 1 else None,
            endpoints=bases if paths > 1 else None,
        )
