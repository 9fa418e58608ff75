"""The far end of an attribution path."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import Attributor, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


@dataclass(frozen=True)
class PathEnd(Perturbation):
    """x' = the end point of any attributor's path from x, for the label's class.

    Args:
        attributor: whose path is walked; gradients are computed on the way. For SIGMA, `SigmaSample` needs none.
    """

    attributor: Attributor = field(default_factory=Sigma)

    def __post_init__(self) -> None:
        if not isinstance(self.attributor, Attributor):
            raise validation.fail("attributor", "an Attributor", repr(self.attributor))

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return end points; converged and steps are those of path 0."""
        result = self.attributor(classifier, x, y, seed=seeds)
        if not torch.isfinite(result.drop).all():
            raise validation.not_finite("scores", self)
        searched = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return Perturbed(result.endpoint, searched, result.converged[:, 0], result.steps[:, 0])
