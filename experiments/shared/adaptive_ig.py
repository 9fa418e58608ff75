"""Integrated Gradients with points where the score rises, as in IDG."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine.attributors import Attribution, Attributor, baselines
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.attributors.idg import schedule
from robustsigma.engine.attributors.straight_line import Line, Path, average_over_baselines
from robustsigma.engine.classifier import Classifier


@dataclass(frozen=True)
class AdaptiveIG(Attributor):
    """The plain mean of the gradients at IDG's points, times the way (Walker et al., 2024, appendix A.2).

    "Equally weighting all gradients" is read as the plain mean: with the points' widths as weights, it would be the
    same integral as IG's, found with other points.

    Args:
        steps: points with a gradient, and passes that find where the logit rises.
        baseline: where the line starts.
    """

    steps: int = 50
    baseline: BaselineName = "black"

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the attribution; passes as of IDG."""
        bases = baselines.make(self.baseline, images, seeds, classifier.bounds)
        return average_over_baselines(classifier, images, target, logits, "logit", bases, self._path)

    def _path(self, line: Line) -> Path:
        ends = line.everywhere([k / self.steps for k in range(1, self.steps)])
        scores = torch.cat([line.low[:, None], line.scores(ends), line.high[:, None]], 1)
        _, points, _ = schedule(scores.diff(dim=1).clamp(min=0), self.steps)
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        for block in line.gradients(points):
            values[block.rows] += block.weighted(torch.full_like(block.scores, 1 / self.steps))
            curve[block.rows, block.columns] = block.scores
        return Path.of(line, values, curve, forwards=self.steps - 1)
