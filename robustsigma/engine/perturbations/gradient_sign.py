"""Attacks that follow the sign of the loss's gradient within an L-infinity ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


def _start(x: Tensor, seeds: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    drawn = noise.uniform(noise.fold(seeds, "start"), tuple(x.shape[1:]), x.dtype)
    return (x + eps * (2 * drawn - 1)).clamp(*bounds)


def _project(point: Tensor, x: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    return point.clamp(x - eps, x + eps).clamp(*bounds)


def _sign(gradient: Tensor) -> Tensor:
    """Return the sign, NaN where not finite: `sign(NaN)` is 0, and a broken gradient would pass for a robust image."""
    return torch.where(gradient.isfinite(), gradient.sign(), torch.nan)


@dataclass(frozen=True)
class FGSM(Perturbation):
    """x' = clip(x + step * sgn(grad_x loss)) (Goodfellow et al., 2015); with a random start that of Wong et al., 2020.

    Args:
        eps: L-infinity radius in pixel units of [0, 1]; 8/255 is the usual CIFAR value.
        random_start: start at a uniform point of the ball and step 1.25 eps, projected back; the form to train on.
    """

    eps: float = 8 / 255
    random_start: bool = False

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images; one forward and one backward pass."""
        point = _start(x, seeds, self.eps, classifier.bounds) if self.random_start else x
        _, gradient = classifier.loss_gradient(point, y)
        step = 1.25 * self.eps if self.random_start else self.eps
        return Perturbed.plain(_project(point + step * _sign(gradient).to(x.dtype), x, self.eps, classifier.bounds))


@dataclass(frozen=True)
class PGD(Perturbation):
    """Projected gradient descent in the L-infinity ball (Madry et al., 2018).

    Args:
        eps: L-infinity radius in pixel units of [0, 1].
        step_size: of each step; None takes 2.5 eps / steps.
        steps: forward and backward passes.
        random_start: start at a uniform point of the ball.
    """

    eps: float = 8 / 255
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)
        validation.integer("steps", self.steps, 1)
        if self.step_size is not None:
            validation.number("step_size", self.step_size, 0, open_low=True)

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images."""
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        point = _start(x, seeds, self.eps, classifier.bounds) if self.random_start else x
        for _ in range(self.steps):
            _, gradient = classifier.loss_gradient(point, y)
            point = _project(point + size * _sign(gradient).to(x.dtype), x, self.eps, classifier.bounds)
        return Perturbed.plain(point)
