"""Attacks of one signed gradient step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Ball, Norm
from robustsigma.engine.perturbations.base import Perturbation, Perturbed

Label = Literal["true", "predicted"]


def one_step_gradient(classifier: Classifier, point: Tensor, y: Tensor, label: Label) -> Tensor:
    """Return the gradient of the loss of the true or the predicted label at `point`; one forward and one backward."""
    if label == "true":
        return classifier.loss_gradient(point, y)[1]
    # The prediction of the same pass, so that hiding the label costs nothing.
    return classifier.gradient_of(lambda z, _: F.cross_entropy(z, z.argmax(1), reduction="sum"), point, y)[1]


@dataclass(frozen=True)
class FGSM(Perturbation):
    """x' = clip(x + step * sgn(grad_x loss)) (Goodfellow et al., 2015); with a random start that of Wong et al., 2020.

    Args:
        eps: L-infinity radius in pixel units of [0, 1]; 8/255 is the usual CIFAR value.
        random_start: start at a uniform point of the ball and step 1.25 eps, projected back; the form to train on.
        label: whose loss is raised. A network trained on one-step attacks of the "true" label can read the label
            from the attack; "predicted", the class that the network gives to the point where the gradient is taken,
            keeps it hidden (label leaking: Kurakin et al., 2017, section 4.3).
    """

    eps: float = 8 / 255
    random_start: bool = False
    label: Label = "true"
    norm: ClassVar[Norm] = "linf"

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)
        validation.choice("label", self.label, get_args(Label))

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images; one forward and one backward pass."""
        ball = Ball(x, self.eps, self.norm, classifier.bounds)
        point = ball.start(seeds) if self.random_start else x
        step = 1.25 * self.eps if self.random_start else self.eps
        gradient = one_step_gradient(classifier, point, y, self.label)
        return Perturbed.plain(ball.project(point + ball.step(gradient, step)))


@dataclass(frozen=True)
class NFGSM(Perturbation):
    """x' = clip(x + n + eps * sgn(grad_x loss(x + n))), n uniform in [-k eps, k eps] (N-FGSM: de Jorge et al., 2022).

    The result is not projected: it may lie (1 + k) eps from x. A perturbation to train on, against catastrophic
    overfitting at radii where FGSM with a random start does not hold, and no attack to measure robustness with.

    Args:
        eps: step in pixel units of [0, 1], the radius to become robust in.
        k: half width of the noise in units of eps.
        label: see `FGSM`.
    """

    eps: float = 8 / 255
    k: float = 2.0
    label: Label = "true"

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)
        validation.number("k", self.k, 0)
        validation.choice("label", self.label, get_args(Label))

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return perturbed images; one forward and one backward pass."""
        noisy = Ball(x, self.k * self.eps, "linf", classifier.bounds)
        point = noisy.start(seeds)
        gradient = one_step_gradient(classifier, point, y, self.label)
        return Perturbed.plain((point + noisy.step(gradient, self.eps)).clamp(*classifier.bounds))
