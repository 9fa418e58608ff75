"""Paths on which features of small gradients move first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine.attributors.straight_line import Line, LineGradients
from robustsigma.engine.scores import target_score

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
