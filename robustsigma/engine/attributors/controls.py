"""Controls for other methods: the plain gradient, and random values, which every metric has to rank last."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score


@dataclass(frozen=True)
class Gradient(Attributor):
    """dF/dx of the target's score (Simonyan et al., 2014, section 3).

    There is no completeness: `drop` is 0, so that `gap()` is the |sum of values|.

    Args:
        score: F.

    Example:
        >>> Gradient()(classifier, images, target).heatmap()
    """

    score: Score = "logit"

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the gradient: one forward pass and one backward pass, after the forward pass of every method."""
        result = self.without_logits(classifier, images, target)
        return replace(result, forwards=result.forwards + 1)

    def without_logits(self, classifier: Classifier, images: Tensor, target: Tensor) -> Attribution:
        """Return the same from one pass each way."""
        logits, gradient = classifier.score_and_gradient(images, target, self.score)
        values = self._values(gradient.to(images.dtype), images)
        return single_point_result(values, target, images, target_score(logits, target, self.score), passes=(1, 1))

    def _values(self, gradient: Tensor, images: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class RandomAttribution(Attributor):
    """Independent standard normal values from the image's seed alone, whatever target and network are.

    A measure that does not rank it below a method has not shown that the method says anything.

    Example:
        >>> RandomAttribution()(classifier, images, seed=0).heatmap()
    """

    stochastic = True

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the noise; the network's only pass is the one that finds the predicted class."""
        shape = (images.shape[1], images.shape[2], images.shape[3])
        values = noise.gaussian(noise.fold(seeds, "random_attribution"), shape, images.dtype)
        return single_point_result(values, target, images, target_score(logits, target, "prob"), passes=(1, 0))
