"""A toy: less contrast."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


@dataclass(frozen=True)
class Foo(Perturbation):
    """Blend an image with gray: x + share * (gray - x).

    Args:
        share: weight of gray, in [0, 1].
    """

    share: float = 0.5
    depends_on_model = False

    def __post_init__(self) -> None:
        validation.number("share", self.share, 0, 1)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return paler images."""
        return Perturbed.plain(images + self.share * (0.5 - images))
