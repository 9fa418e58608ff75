"""Left Integrated Gradients: the part of the line before the score saturates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.baselines import Baseline
from robustsigma.engine.attributors.integrated_gradients import quadrature
from robustsigma.engine.attributors.path_methods import Line, PathResult, StraightLineAttributor
from robustsigma.engine.scores import Score


@dataclass(frozen=True)
class LeftIntegratedGradients(StraightLineAttributor):
    """Integrated Gradients up to the saturated part of the line (Miglani et al., 2020).

    Gradients are summed by the right-hand rule at a_k = k / steps for the k before the first at which
    F > F(x') + fraction (F(x) - F(x')). The result's `steps` is the number of these points. `drop` is F at the last of
    them less F(x'), which `values` sum to up to the rule's O(1 / steps). The curve covers the whole line, since a point
    after the cut is recognized only by its score.

    The authors' code leaves some images without a map. Here at least one point is kept. Where F(x) <= F(x') there is no
    rise to cut, so the whole line is taken and `converged` is False. `published` has the authors' code, and the IDG
    authors' form of the method.

    Args:
        steps: points on the line, a gradient each.
        fraction: share of the rise of F, in (0, 1]; the authors use 0.9 and 0.95.
        baseline: x', as for `IntegratedGradients`.
        score: F.

    Example:
        >>> LeftIntegratedGradients(steps=20)(classifier, images, target).heatmap()
    """

    steps: int = 200
    fraction: float = 0.9
    baseline: Baseline = "black"
    score: Score = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("fraction", self.fraction, 0, 1, open_low=True)

    def integrate(self, line: Line) -> PathResult:
        """Return the sum over the points before the cut."""
        rising = line.high > line.low
        threshold = line.low + self.fraction * (line.high - line.low)
        return self._sum_before(line, quadrature("right", self.steps)[0], threshold.where(rising, torch.inf), rising, 1)

    def _sum_before(self, line: Line, at: list[float], threshold: Tensor, converged: Tensor, least: int) -> PathResult:
        """Return the sum over the points before the first with a score above the threshold, but of at least `least`."""
        points = line.expanded(at)
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        kept = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        stopped = torch.zeros_like(converged)
        order = torch.arange(self.steps, device=points.device)
        for part in line.gradients(points):
            rows, columns = part.rows, part.columns
            cut = stopped[rows, None] | ((part.scores > threshold[rows, None]).cumsum(1) > 0)
            stopped[rows] = cut[:, -1]
            taken = ~cut | (order[columns] < least)
            values[rows] += part.weighted(taken.to(values.dtype) / self.steps)
            curve[rows, columns] = part.scores
            kept[rows] += taken.sum(1)
        return PathResult(line, values, curve, drop=rise_to(line, curve, kept), steps=kept, converged=converged)


def rise_to(line: Line, curve: Tensor, kept: Tensor) -> Tensor:
    """Return the rise (B,) of the score from the baseline to the last of the first `kept` points."""
    last = curve.gather(1, (kept - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(kept > 0, last - line.low, 0)
