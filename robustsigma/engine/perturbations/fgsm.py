"""Attacks of one signed gradient step: FGSM and N-FGSM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Ball
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.projections import Norm

Label = Literal["true", "predicted"]


def one_step_gradient(classifier: Classifier, point: Tensor, labels: Tensor, label: Label, eot: int = 1) -> Tensor:
    """Return the gradient of the loss of the true or the predicted label at `point`; `eot` passes of each kind."""

    def loss(logits: Tensor, at: Tensor) -> Tensor:
        # The prediction of the same pass: hiding the label costs nothing.
        return F.cross_entropy(logits, at if label == "true" else logits.argmax(1), reduction="none")

    return classifier.gradient_of(loss, point, labels, eot)[1]


@dataclass(frozen=True)
class FGSM(Perturbation):
    """Return clip(x + step * sgn(grad_x loss)) (Goodfellow et al., 2015), or its form with a random start.

    Args:
        eps: L-infinity radius in pixel units of [0, 1]; 8/255 is the usual CIFAR value.
        random_start: start at a uniform point of the ball, step 1.25 eps and project back (Wong et al., 2020); the
            form for training.
        label: label whose loss is raised, "true" or "predicted". A network trained on one-step attacks of the true
            label can read the label from the attack (label leaking: Kurakin et al., 2017, section 4.3). "predicted",
            the class predicted at the point where the gradient is taken, hides it.
        eot: number of passes whose gradients are averaged, for networks with random outputs.

    Example:
        >>> adversarial = FGSM(8 / 255)(classifier, images, labels, seed=0)
    """

    eps: float = 8 / 255
    random_start: bool = False
    label: Label = "true"
    eot: int = 1
    norm: ClassVar[Norm] = "linf"

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)
        validation.integer("eot", self.eot, 1)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images; one forward and one backward pass."""
        ball = Ball(images, self.eps, self.norm, classifier.bounds)
        point = ball.start(seeds) if self.random_start else images
        step = 1.25 * self.eps if self.random_start else self.eps
        gradient = one_step_gradient(classifier, point, labels, self.label, self.eot)
        return Perturbed.plain(ball.project(point + ball.step(gradient, step)))


@dataclass(frozen=True)
class NFGSM(Perturbation):
    """Return clip(x + n + eps * sgn(grad_x loss(x + n))), n uniform in [-k eps, k eps] (de Jorge et al., 2022).

    The result is not projected: it may lie (1 + k) eps from x. Use it to train, against catastrophic overfitting at
    radii where FGSM with a random start fails. Do not use it to measure robustness.

    Args:
        eps: step in pixel units of [0, 1]; the radius of the desired robustness.
        k: half width of the noise in units of eps.
        label: label whose loss is raised, "true" or "predicted"; see `FGSM`.
        eot: number of passes whose gradients are averaged, for networks with random outputs.

    Example:
        >>> hard = NFGSM(8 / 255)(classifier, images, labels, seed=0)
    """

    eps: float = 8 / 255
    k: float = 2.0
    label: Label = "true"
    eot: int = 1

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)
        validation.number("k", self.k, 0)
        validation.integer("eot", self.eot, 1)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return perturbed images; one forward and one backward pass."""
        noisy = Ball(images, self.k * self.eps, "linf", classifier.bounds)
        point = noisy.start(seeds)
        gradient = one_step_gradient(classifier, point, labels, self.label, self.eot)
        return Perturbed.plain((point + noisy.step(gradient, self.eps)).clamp(*classifier.bounds))
