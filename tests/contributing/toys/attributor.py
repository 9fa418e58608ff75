"""A toy: the gradient times the distance from gray."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import target_score


@dataclass(frozen=True)
class Foo(Attributor):
    """(x - gray) * dF/dx of the target's logit F (nobody, never, equation 0).

    Args:
        gray: what pixels are compared with, in [0, 1].
    """

    gray: float = 0.5

    def __post_init__(self) -> None:
        validation.number("gray", self.gray, 0, 1)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the product."""
        _, gradient = classifier.score_and_gradient(images, target)
        values = gradient.to(images.dtype) * (images - self.gray)
        return single_point_result(values, target, images, target_score(logits, target, "logit"), passes=(2, 1))
