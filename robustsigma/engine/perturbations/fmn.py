"""Fast minimum-norm attack: a distance for each image, hence the accuracy at every radius of one run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Ball
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.losses import margin
from robustsigma.engine.perturbations.projections import DUAL, Norm, lengths

_STUCK = 1.001  # an estimate of the radius below so many times the last one


@dataclass(frozen=True)
class FMN(Perturbation):
    """Fast minimum-norm attack (Pintor et al., 2021): the nearest misclassified image that it finds.

    Each step follows the gradient of the margin and is projected onto a ball whose radius shrinks at misclassified
    points and grows at others, also where the authors' code would keep it without success. Images that withstand it, or
    are misclassified, are returned as they are.

    Args:
        norm: "linf", "l2" or "l1".
        steps: number of steps, each one forward and one backward pass.
        step_size: length of the first step in the L2 norm; it falls to a hundredth.
        gamma: first relative change of the radius; it falls to a fiftieth.
        eot: number of passes whose gradients are averaged, for networks with random outputs.

    Example:
        >>> found = FMN("l2", steps=200)(classifier, images, labels, seed=0, return_info=True)
        >>> found.accuracy([0.25, 0.5, 1.0]), found.median_distance(), found.area(1.0)
    """

    norm: Norm = "linf"
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    eot: int = 1

    def __post_init__(self) -> None:
        validation.integer("steps", self.steps, 1)
        validation.number("step_size", self.step_size, 0, open_low=True)
        validation.number("gamma", self.gamma, 0, 1)
        validation.integer("eot", self.eot, 1)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return the nearest misclassified images."""
        low, high = classifier.bounds
        whole = lengths(torch.maximum(images - low, high - images), self.norm)  # no change within bounds is longer
        change, nearest, found = torch.zeros_like(images), whole, images
        radius, misled = torch.full_like(whole, torch.inf), torch.zeros_like(labels, dtype=torch.bool)
        for step in range(self.steps):
            fall = (1 + math.cos(math.pi * step / self.steps)) / 2  # from 1 to 0
            size, gamma = self.step_size * (0.01 + 0.99 * fall), self.gamma * (0.02 + 0.98 * fall)
            length = lengths(change, self.norm)
            logits, gradient = classifier.gradient_of(lambda z, y: -margin(z, y), images + change, labels, self.eot)
            if not bool(logits.isnan().any().logical_not() & gradient.isfinite().all()):
                raise validation.not_finite("gradients or scores", self)
            wrong = logits.argmax(1) != labels
            nearer = wrong & (length < nearest)
            nearest = torch.where(nearer, length, nearest)
            found = torch.where(nearer.view(-1, 1, 1, 1), images + change, found)
            misled |= wrong
            to_boundary = margin(logits, labels).abs() / lengths(gradient, DUAL[self.norm]).clamp(min=1e-12)
            estimate = length + to_boundary
            # Where bounds cut the change, the estimate may stay below the boundary for ever, as in the authors' code.
            grows = misled | (estimate <= radius * _STUCK) if step else misled
            grown = torch.where(grows, radius * (1 + gamma), estimate)
            radius = torch.where(wrong, torch.minimum(radius * (1 - gamma), nearest), grown).clamp(max=whole)
            slope = lengths(gradient, "l2").clamp(min=1e-12).view(-1, 1, 1, 1)
            ball = Ball(images, radius.view(-1, 1, 1, 1), self.norm, classifier.bounds)
            change = ball.project(images + change + size * gradient / slope) - images
        return Perturbed.plain(found)
