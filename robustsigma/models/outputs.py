"""How many logits a network has, found by asking it."""

from __future__ import annotations

import torch

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail


def count_logits(classifier: Classifier, shape: tuple[int, int, int], name: str) -> int:
    """Return the number of logits for images of a shape (C, H, W).

    Args:
        classifier: in eval mode.
        shape: of an image.
        name: of the argument that says the shape, for the error.

    Raises:
        ValueError: a network that does not take such images.
    """
    try:
        with classifier.frozen():
            return classifier.logits(torch.zeros(1, *shape, device=classifier.mean.device)).shape[1]
    except (RuntimeError, TypeError, AssertionError) as error:
        told = f"an image size that {type(classifier.net).__name__} takes"
        raise fail(name, told, f"{shape} ({(str(error).splitlines() or [''])[0][:160]})") from error
