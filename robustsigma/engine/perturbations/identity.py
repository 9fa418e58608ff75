"""The image itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


@dataclass(frozen=True)
class Identity(Perturbation):
    """x' = x: the "clean" condition."""

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return x."""
        return Perturbed.plain(x)

    @property
    def depends_on_model(self) -> bool:
        """False."""
        return False
