"""Perturbations that do not depend on a model: the unchanged image and Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


@dataclass(frozen=True)
class Identity(Perturbation):
    """Return the images unchanged: the "clean" condition.

    Example:
        >>> Identity()(classifier, images, labels, seed=0).equal(images)
    """

    depends_on_model = False

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return the images."""
        return Perturbed.plain(images)


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    """Add Gaussian noise: clip(x + std * n), with n standard normal for each pixel and channel.

    Args:
        std: standard deviation in pixel units of [0, 1].

    Example:
        >>> noisy = GaussianNoise(0.1)(classifier, images, labels, seed=0)
    """

    std: float = 0.1
    depends_on_model = False

    def __post_init__(self) -> None:
        if validation.number("std", self.std, 0) > 1:
            raise validation.fail(
                "std", "a standard deviation in [0, 1], as pixels are", f"{self.std:g}; divide by 255"
            )

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return noisy images."""
        n = noise.gaussian(noise.fold(seeds, "gaussian_noise"), tuple(images.shape[1:]), images.dtype)
        return Perturbed.plain((images + self.std * n).clamp(*classifier.bounds))
