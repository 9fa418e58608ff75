"""Akhtar and Jalwana's integration from the baseline of Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.attributors.path_methods import Line, PathResult, StraightLineAttributor
from robustsigma.engine.scores import Score

_SLACK = 1e-4  # gradients of one linear piece are equal but for rounding


@dataclass(frozen=True)
class ValidGradients(StraightLineAttributor):
    """Gradients along IG's line, of which those count that `CrediblePath` counts ("Our + IG Baseline" of table 4).

    A gradient counts for a feature where it has the sign of the gradient at the image and is not larger.

    Args:
        steps: points with a gradient, at the middles of equal parts.
        baseline: where the line starts.
        score: what is explained.
    """

    steps: int = 150
    baseline: BaselineName = "black"
    score: Score = "logit"

    def integrate(self, line: Line) -> PathResult:
        """Return the attribution along one line; passes as of IG, and one each way for the image's gradient."""
        images = line.images
        reference = line.classifier.score_and_gradient(images, line.target, self.score)[1].to(images.dtype)
        total, count = torch.zeros_like(images), torch.zeros_like(images)
        points = line.expanded([(k + 0.5) / self.steps for k in range(self.steps)])
        curve = torch.empty_like(points)
        for part in line.gradients(points):
            at_image, along = reference[part.rows, None], part.gradients
            valid = (along.sign() == at_image.sign()) & (along.abs() <= (1 + _SLACK) * at_image.abs())
            total[part.rows] += (along * valid).sum(1)
            count[part.rows] += valid.sum(1)
            curve[part.rows, part.columns] = part.scores
        values = (images - line.base) * total / count.clamp(min=1)
        return PathResult(line, values, curve, forwards=1, backwards=1, valid=count.flatten(1).mean(1) / self.steps)
