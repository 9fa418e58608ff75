"""Distrust: signs that a robustness number should not be believed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier


@dataclass(frozen=True)
class Flag:
    """A reason not to believe a number.

    Attributes:
        code: short name, stable.
        message: one sentence.
    """

    code: str
    message: str


def check_classifier(classifier: Classifier, images: Tensor, labels: Tensor) -> list[Flag]:
    """Return flags for a network whose attack results would mislead.

    Outputs that are probabilities, outputs that change between two equal calls, and zero or non-finite loss
    gradients (gradient masking: Athalye et al., 2018; Croce and Hein's automatic flags).

    Args:
        classifier: the network.
        images: a batch (B, C, H, W) in [0, 1].
        labels: (B,).
    """
    validation.images(images, classifier.bounds)
    flags = []
    with classifier.frozen():
        x = images.detach().clone()
        first, again = classifier.logits(x), classifier.logits(x)
        at = validation.target(labels, x, "labels")
        classifier.check_target(at, x, "labels")
        _, gradient = classifier.loss_gradient(x, at)
    if is_probability(first):
        flags.append(Flag("probabilities", "The network returns probabilities, not logits: gradients vanish."))
    # Not bit for bit: a GPU may choose another algorithm for the second call.
    if not torch.allclose(first, again, rtol=1e-4, atol=1e-5, equal_nan=True):
        flags.append(Flag("random_outputs", "Two equal calls give different logits: attacks need averaging (EOT)."))
    size = gradient.flatten(1).abs().amax(1)
    dead = int(((size == 0) | ~torch.isfinite(size)).sum())
    if dead > 0.1 * len(x):
        share = dead / len(x)
        flags.append(Flag("zero_gradient", f"{share:.0%} of loss gradients are zero or not finite: masking is likely."))
    return flags


def is_probability(logits: Tensor) -> bool:
    """Return whether rows are non-negative and sum to 1, as a softmax's do."""
    sums = logits.double().sum(1)
    return bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())
