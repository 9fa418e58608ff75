"""Integrated Decision Gradients, with adaptive sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.baselines import Baseline
from robustsigma.engine.attributors.integrated_gradients import Rule, quadrature
from robustsigma.engine.attributors.path_methods import Line, PathResult, StraightLineAttributor
from robustsigma.engine.scores import Score

_FLAT = 1e-12  # rises that sum to no more than this are taken as a flat curve


def schedule(rises: Tensor, samples: int, place: Literal["middle", "left"] = "middle") -> tuple[Tensor, Tensor, Tensor]:
    """Return sample counts (B, N), points and weights (B, M) for the rises of F over N equal intervals of [0, 1].

    Counts are proportional to the rises and sum to M (largest remainders). An interval's samples lie at the middles of
    its equal parts and share its width. A flat curve is treated as rising evenly.

    Args:
        rises: non-negative, (B, N).
        samples: M.
        place: place of a sample in its part, its "middle" or its "left" end.
    """
    intervals = rises.shape[1]
    wide = rises.double()
    wide = torch.where(wide.sum(1, keepdim=True) > _FLAT, wide, 1)
    quota = samples * wide / wide.sum(1, keepdim=True)
    counts = quota.floor()
    # Rounding noise in F must not decide between equal rises. The grid is a power of two, so no M / N lies on an edge.
    remainder = ((quota - counts) * 2**13).round()
    rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(1)
    counts = (counts + (rank < samples - counts.sum(1, keepdim=True))).long()
    ends = counts.cumsum(1)
    sample = torch.arange(samples, device=rises.device).expand(len(rises), -1).contiguous()
    interval = torch.searchsorted(ends, sample, right=True)
    within = sample - (ends - counts).gather(1, interval) + (0.5 if place == "middle" else 0.0)
    count = counts.gather(1, interval)
    points = (interval + within / count) / intervals
    return counts, points.to(rises), (1 / (intervals * count)).to(rises)


@dataclass(frozen=True)
class IDG(StraightLineAttributor):
    """IDG_i = (x_i - x'_i) * integral over a of dF/dx_i * dF/da da (Walker et al., 2024, eq. 3).

    The importance factor dF/da favors the part of the line where F changes, so values do not sum to
    F(x) - F(x'). `drop` is that difference, and `gap()` does not measure the quality of the result.

    Passes are those of IG, and `intervals` - 1 forward passes more a baseline for adaptive sampling. Decided where the
    paper's algorithm 1 and its code slip: empty intervals advance along the line; falls of F get no samples by
    default; counts sum to `steps`; no sample is lost to the first difference; there is no second mean. `converged` is
    False where F does not rise (or change) and the schedule is therefore uniform. `published.AuthorsIDG` reproduces
    the authors' code.

    Args:
        steps: M, points with a gradient.
        intervals: N of the forward passes that find where F rises; None takes `steps`, the paper's choice.
        sampling: "adaptive" puts samples where F rises, "uniform" at the middles of equal parts.
        follow: "rises" puts adaptive samples where F rises, "changes" also where it falls.
        place: place of a sample in its part of the line: the "middle" or, as in the paper's algorithm 1, the "left"
            end. A first sample there lies on the baseline, where `factor="difference"` finds no growth.
        factor: dF/da. "exact" is the gradient along the line, which costs nothing more; "difference" is the paper's
            backward difference between neighboring samples.
        baseline: x', as for `IntegratedGradients`.
        score: F.

    Example:
        >>> IDG(steps=20)(classifier, images, target).heatmap()
    """

    steps: int = 50
    intervals: int | None = None
    sampling: Literal["adaptive", "uniform"] = "adaptive"
    follow: Literal["rises", "changes"] = "rises"
    place: Literal["middle", "left"] = "middle"
    factor: Literal["exact", "difference"] = "exact"
    baseline: Baseline = "black"
    score: Score = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intervals is not None:
            validation.integer("intervals", self.intervals, 1)

    def integrate(self, line: Line) -> PathResult:
        """Return IDG along one line."""
        if self.sampling == "uniform":
            rule: Rule = "midpoint" if self.place == "middle" else "left"
            points, weights = map(line.expanded, quadrature(rule, self.steps))
            return self._weighted_path(line, points, weights)
        intervals = self.intervals or self.steps
        ends = line.expanded([k / intervals for k in range(1, intervals)])
        changes = torch.cat([line.low[:, None], line.scores(ends), line.high[:, None]], 1).diff(dim=1)
        rises = changes.clamp(min=0) if self.follow == "rises" else changes.abs()
        _, points, weights = schedule(rises, self.steps, self.place)
        return self._weighted_path(line, points, weights, intervals - 1, rises.double().sum(1) > _FLAT)

    def _weighted_path(
        self, line: Line, points: Tensor, weights: Tensor, forwards: int = 0, converged: Tensor | None = None
    ) -> PathResult:
        """Return the sum over points of weight * dF/dx * dF/da; `forwards` are the passes already spent."""
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        # Differences are taken from the sample before, the first one from the baseline.
        last_point, last_score = torch.zeros_like(line.low), line.low.clone()
        for part in line.gradients(points):
            rows, columns = part.rows, part.columns
            if self.factor == "exact":
                factor = (part.gradients * part.delta).flatten(2).sum(2)
            else:
                before = torch.cat([last_point[rows, None], points[rows, columns][:, :-1]], 1)
                lower = torch.cat([last_score[rows, None], part.scores[:, :-1]], 1)
                length = points[rows, columns] - before
                factor = torch.where(length > 0, (part.scores - lower) / torch.where(length > 0, length, 1), 0)
                last_point[rows], last_score[rows] = points[rows, columns][:, -1], part.scores[:, -1]
            values[rows] += part.weighted(weights[rows, columns] * factor)
            curve[rows, columns] = part.scores
        return PathResult(line, values, curve, converged=converged, forwards=forwards)
