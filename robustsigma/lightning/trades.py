"""TRADES: a loss that trades accuracy off against predictions that stay the same in a ball around each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import PGD


@dataclass(frozen=True)
class Trades(validation.Settings):
    """Loss CE(f(x), y) + beta KL(f(x) || f(x')) (Zhang et al., 2019, eq. 5), where x' maximizes the divergence.

    x' is found by PGD from x with Gaussian noise of standard deviation 0.001, in eval mode. In training mode x and x'
    are two passes, so BatchNorm has the statistics of each, as in the authors' code.

    Args:
        eps: radius of the ball in pixel units of [0, 1].
        beta: weight of the divergence.
        steps: number of steps of PGD, each one forward and one backward pass.
        step_size: size of a step; None is eps / 4.
        norm: "linf" or "l2".

    Example:
        >>> trades = Trades(eps=8 / 255, beta=6.0)
    """

    eps: float = 8 / 255
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        validation.number("beta", self.beta, 0)
        _ = self.attack

    @property
    def attack(self) -> PGD:
        """The attack that finds x'."""
        return PGD(self.eps, steps=self.steps, step_size=self.step_size, norm=self.norm, objective="kl")

    def perturbed(self, classifier: Classifier, images: Tensor, epoch: int) -> Tensor:
        """Return x' (B, C, H, W); its start is drawn from the epoch and each image's own pixels."""
        seed = int(noise.fold(torch.tensor([epoch]), "trades"))
        return self.attack(classifier, images, 0, seed=seed)  # whatever the labels

    def divergence(self, logits: Tensor, perturbed: Tensor) -> Tensor:
        """Return beta KL(f(x) || f(x')), the mean over the images, from their logits (B, K); 0 without images."""
        if len(logits) == 0:
            return 0 * perturbed.sum()
        own, other = logits.log_softmax(1), perturbed.log_softmax(1)
        return self.beta * F.kl_div(other, own, reduction="batchmean", log_target=True)
