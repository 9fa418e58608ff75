"""Integrated Gradients with points where the score rises, as in IDG."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.attributors.idg import schedule
from robustsigma.engine.attributors.path_methods import Line, PathResult, StraightLineAttributor
from robustsigma.engine.scores import Score


@dataclass(frozen=True)
class AdaptiveIG(StraightLineAttributor):
    """The plain mean of the gradients at IDG's points, times the way (Walker et al., 2024, appendix A.2).

    "Equally weighting all gradients" is read as the plain mean: with the points' widths as weights, it would be the
    same integral as IG's, found with other points.

    Args:
        steps: points with a gradient, and passes that find where the logit rises.
        baseline: where the line starts.
        score: what is explained.
    """

    steps: int = 50
    baseline: BaselineName = "black"
    score: Score = "logit"

    def integrate(self, line: Line) -> PathResult:
        """Return the attribution along one line; passes as of IDG."""
        ends = line.expanded([k / self.steps for k in range(1, self.steps)])
        scores = torch.cat([line.low[:, None], line.scores(ends), line.high[:, None]], 1)
        _, points, _ = schedule(scores.diff(dim=1).clamp(min=0), self.steps)
        values, curve = line.weighted_sum(points, torch.full_like(points, 1 / self.steps))
        return PathResult(line, values, curve, forwards=self.steps - 1)
