"""Signs that the numbers of a network, its attributions and its robustness, should not be believed."""

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
        images: number of images.
        probabilities: whether the outputs are probabilities, not logits.
        random_outputs: whether two equal passes gave different outputs.
        dead: number of images whose loss has a gradient that is zero everywhere, or not finite somewhere.
        batch_dependent: whether an image's logits depend on the other images of its batch.
    """

    images: int
    probabilities: bool
    random_outputs: bool
    dead: int
    batch_dependent: bool = False

    @property
    def flags(self) -> list[Flag]:
        """What speaks against believing such a network's numbers; dead gradients if more than one image in ten."""
        found = []
        if self.probabilities:
            message = "The network returns probabilities, not logits: gradients vanish. Leave its softmax out."
            found.append(Flag("probabilities", message))
        if self.random_outputs:
            message = "Two equal passes give different logits (is dropout always on?): attacks need averaging (EOT)."
            found.append(Flag("random_outputs", message))
        if self.batch_dependent:
            message = (
                "An image's logits depend on the other images of its batch (does BatchNorm use batch statistics?): "
                "results change with the batch size and order."
            )
            found.append(Flag("batch_dependent", message))
        if self.dead > _MANY_DEAD * self.images:
            fraction = self.dead / self.images
            message = (
                f"{fraction:.0%} of loss gradients are zero or not finite (is the network quantized, saturated or "
                "run under no_grad?): attacks and attributions by gradient do not work."
            )
            found.append(Flag("zero_gradient", message))
        return found


def inspect_classifier(classifier: Classifier, images: Tensor, labels: Tensor) -> Soundness:
    """Return what a network's outputs and gradients are like, in eval mode.

    Probabilities for logits, random outputs, and zero or non-finite loss gradients are signs that attacks by gradient
    mislead (Athalye et al., 2018; Croce and Hein's automatic flags). Logits that depend on the rest of the batch make
    every number depend on the batch size.

    Args:
        classifier: the network.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).

    Raises:
        ValueError: images or labels outside what is stated here.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3), torch.nn.Softmax(1))
        >>> inspect_classifier(Classifier(net), torch.rand(2, 3, 4, 4), torch.tensor([0, 1])).probabilities
        True
    """
    classifier = as_classifier(classifier)
    validation.images(images, classifier.bounds)
    with classifier.frozen():
        x = classifier.prepare_input(images)
        at = validation.target(labels, x, "labels")
        classifier.check_target(at, x, "labels")
        logits = classifier.logits(x)
        randomness = not _equal(classifier, logits, classifier.logits(x))
        _, gradient = classifier.loss_gradient(x, at)
        batch_dependent = not randomness and _depends_on_batch(classifier, x)
        classifier.checked = True
    size = gradient.flatten(1).abs().amax(1)
    dead = int(((size == 0) | ~torch.isfinite(size)).sum())
    return Soundness(len(x), validation.are_probabilities(logits), randomness, dead, batch_dependent)


def warn_once(classifier: Classifier, images: Tensor, target: Tensor) -> None:
    """Warn where a network's results should not be believed, and mark it as checked; call inside `frozen()`.

    Looks at two images at most: five passes of them and one gradient.
    """
    classifier.checked = True
    x, at = images[:2], target[:2]
    try:
        logits = classifier.logits(x)
        randomness = not _equal(classifier, logits, classifier.logits(x))
        # Of the logit: the loss of a confident network may well have no gradient in single precision.
        gradient = classifier.score_and_gradient(x, at)[1]
    except Exception:  # of a network that takes batches of another size only, else the method itself meets it
        found = Soundness(len(x), False, False, 0, batch_dependent=True)
    else:
        probabilities = validation.are_no_logits(logits)
        batch_dependent = not randomness and _depends_on_batch(classifier, x)
        found = Soundness(len(x), probabilities, randomness, 0 if gradient.any() else len(x), batch_dependent)
    for flag in found.flags:
        validation.warn(f"net: {flag.message}")


def _depends_on_batch(classifier: Classifier, images: Tensor) -> bool:
    """Return whether one of two images has other logits alone than beside the other."""
    # The second differs from the first in mean and contrast: images of a batch may be alike.
    pair = torch.cat([images[:1], 0.5 * (1 - images[:1].flip(3))])
    try:
        alone = torch.cat([classifier.logits(image[None]) for image in pair])
    except Exception:  # such as of BatchNorm that has no statistics of one image
        return True
    return not _equal(classifier, alone, classifier.logits(pair))


def _equal(classifier: Classifier, a: Tensor, b: Tensor) -> bool:
    """Return whether logits are equal up to the rounding of other algorithms and batch sizes."""
    dtypes = [parameter.dtype for parameter in classifier.net.parameters() if parameter.is_floating_point()]
    rounding = max([3e-4, *(16 * torch.finfo(dtype).eps for dtype in dtypes if dtype.itemsize < 4)])
    a, b = a.nan_to_num(), b.nan_to_num()
    return bool((a - b).abs().max() <= 1e-5 + rounding * a.abs().max())
