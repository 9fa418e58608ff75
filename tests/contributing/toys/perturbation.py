"""A toy: less contrast."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


@dataclass(frozen=True)
class Foo(Perturbation):
    """x' = x + share * (gray - x).

    Args:
        share: how far every pixel goes to gray, in [0, 1].
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        validation.number("share", self.share, 0, 1)

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return paler images."""
        return Perturbed.plain(x + self.share * (0.5 - x))

    @property
    def depends_on_model(self) -> bool:
        """False."""
        return False
