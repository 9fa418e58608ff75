"""Random attribution, the control that every measure of quality has to rank last."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.classifier import Classifier, target_score


@dataclass(frozen=True)
class RandomAttribution(Attributor):
    """Independent standard normal values from the image's seed alone, whatever target and network are.

    A measure that does not rank it below a method has not shown that the method says anything.
    """

    @property
    def stochastic(self) -> bool:
        """Whether other seeds give other values: nothing else does."""
        return True

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the noise; the network's only pass is the one that finds the predicted class."""
        shape = (images.shape[1], images.shape[2], images.shape[3])
        values = noise.gaussian(noise.fold(seeds, "random_attribution"), shape, images.dtype)
        return single_point_result(values, target, images, target_score(logits, target, "prob"), passes=(1, 0))
