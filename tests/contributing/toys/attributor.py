"""A toy: the gradient times the distance from grey."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.pathless import pathless
from robustsigma.engine.classifier import Classifier, pick


@dataclass(frozen=True)
class Foo(Attributor):
    """(x - grey) * dF/dx of the target's logit F (nobody, never, equation 0).

    Args:
        grey: what pixels are compared with, in [0, 1].
    """

    grey: float = 0.5

    def __post_init__(self) -> None:
        validation.number("grey", self.grey, 0, 1)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the product."""
        _, gradient = classifier.score_and_gradient(images, target)
        values = gradient.to(images.dtype) * (images - self.grey)
        return pathless(values, target, images, pick(logits, target, "logit"), passes=(2, 1))
