"""Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    """x' = clip(x + std * n), n standard normal for each pixel and channel.

    Args:
        std: in pixel units of [0, 1].
    """

    std: float = 0.1

    def __post_init__(self) -> None:
        validation.number("std", self.std, 0)

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return noisy images."""
        drawn = noise.gaussian(noise.fold(seeds, "gaussian_noise"), tuple(x.shape[1:]), x.dtype)
        return Perturbed.plain((x + self.std * drawn).clamp(*classifier.bounds))

    @property
    def depends_on_model(self) -> bool:
        """False."""
        return False
