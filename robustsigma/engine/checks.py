"""Distrust: signs that a robustness number should not be believed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier, as_classifier

_MANY_DEAD = 0.1


@dataclass(frozen=True)
class Flag:
    """A reason not to believe a number.

    Attributes:
        code: short name, stable.
        message: one sentence.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Soundness:
    """What a network's outputs and gradients are like, on some images.

    Attributes:
        images: how many were looked at.
        probabilities: whether the outputs are probabilities, not logits.
        random_outputs: whether two equal calls gave different outputs.
        dead: images whose loss has a gradient that is zero everywhere, or not finite somewhere.
    """

    images: int
    probabilities: bool
    random_outputs: bool
    dead: int

    @property
    def flags(self) -> list[Flag]:
        """What speaks against attacking such a network by its gradients; dead ones if more than one image in ten."""
        found = []
        if self.probabilities:
            found.append(Flag("probabilities", "The network returns probabilities, not logits: gradients vanish."))
        if self.random_outputs:
            message = "Two equal calls give different logits: attacks need averaging (EOT)."
            found.append(Flag("random_outputs", message))
        if self.dead > _MANY_DEAD * self.images:
            share = self.dead / self.images
            message = f"{share:.0%} of loss gradients are zero or not finite: masking is likely."
            found.append(Flag("zero_gradient", message))
        return found


def inspect_classifier(classifier: Classifier, images: Tensor, labels: Tensor) -> Soundness:
    """Return what a network's outputs and gradients are like, in eval mode.

    Probabilities for logits, random outputs, and zero or non-finite loss gradients are signs that attacks by gradient
    mislead (Athalye et al., 2018; Croce and Hein's automatic flags).

    Args:
        classifier: the network.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).

    Raises:
        ValueError: images or labels outside what is stated here.
    """
    classifier = as_classifier(classifier)
    validation.images(images, classifier.bounds)
    with classifier.frozen():
        x = images.detach().clone()
        first, again = classifier.logits(x), classifier.logits(x)
        at = validation.target(labels, x, "labels")
        classifier.check_target(at, x, "labels")
        _, gradient = classifier.loss_gradient(x, at)
    # Not bit for bit: a GPU may choose another algorithm for the second call.
    same = torch.allclose(first, again, rtol=1e-4, atol=1e-5, equal_nan=True)
    size = gradient.flatten(1).abs().amax(1)
    dead = int(((size == 0) | ~torch.isfinite(size)).sum())
    return Soundness(len(x), validation.are_probabilities(first), not same, dead)


def check_classifier(classifier: Classifier, images: Tensor, labels: Tensor) -> list[Flag]:
    """Return flags for a network whose attack results would mislead; arguments as of `inspect_classifier`."""
    return inspect_classifier(classifier, images, labels).flags
