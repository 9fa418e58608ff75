"""Akhtar and Jalwana's integration from the baseline of Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine.attributors import Attribution, Attributor, baselines
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.attributors.straight_line import Line, Path, average_over_baselines
from robustsigma.engine.classifier import Classifier

_SLACK = 1e-4  # gradients of one linear piece are equal but for rounding


@dataclass(frozen=True)
class ValidGradients(Attributor):
    """Gradients along IG's line, of which those count that `CrediblePath` counts ("Our + IG Baseline" of table 4).

    A gradient counts for a feature where it has the sign of the gradient at the image and is not larger.

    Args:
        steps: points with a gradient, at the middles of equal parts.
        baseline: where the line starts.
    """

    steps: int = 150
    baseline: BaselineName = "black"

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the attribution; passes as of IG, and a forward and backward pass for the gradient at the image."""
        reference = classifier.score_and_gradient(images, target, "logit")[1].to(images.dtype)
        bases = baselines.make(self.baseline, images, seeds, classifier.bounds)

        def path(line: Line) -> Path:
            total, count = torch.zeros_like(images), torch.zeros_like(images)
            points = line.everywhere([(k + 0.5) / self.steps for k in range(self.steps)])
            curve = torch.empty_like(points)
            for block in line.gradients(points):
                at_image, along = reference[block.rows, None], block.gradients
                valid = (along.sign() == at_image.sign()) & (along.abs() <= (1 + _SLACK) * at_image.abs())
                total[block.rows] += (along * valid).sum(1)
                count[block.rows] += valid.sum(1)
                curve[block.rows, block.columns] = block.scores
            values = (images - line.base) * total / count.clamp(min=1)
            return Path.of(line, values, curve, forwards=1, backwards=1, valid=count.flatten(1).mean(1) / self.steps)

        return average_over_baselines(classifier, images, target, logits, "logit", bases, path)
