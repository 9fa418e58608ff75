"""Guided Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines
from robustsigma.engine.attributors.base import Attribution
from robustsigma.engine.attributors.baselines import Baseline, BaselineAttributor
from robustsigma.engine.attributors.guided_line import GuidedLine
from robustsigma.engine.attributors.integrated_gradients import quadrature
from robustsigma.engine.attributors.straight_line import Line, PathMethod, straight_lines
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score


@dataclass(frozen=True)
class GuidedIntegratedGradients(BaselineAttributor, PathMethod):
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
        validation.integer("steps", self.steps, 1)
        validation.number("fraction", self.fraction, 0, 1)
        validation.number("max_dist", self.max_dist, 0, 1)

    def lines(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> list[Line]:
        """Return the guided path from each baseline, for methods that sum other things along it."""
        straight = straight_lines(self, classifier, images, target, logits, seeds)
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
