"""The points of a path and their gradients; an attribution has only their sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from robustsigma.engine.attributors import Attribution, Attributor
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score

LOW, HIGH = 0.1, 0.9


class Walked(NamedTuple):
    """The path of one image. S points with a gradient, in the order in which they were passed.

    Attributes:
        result: what the method gives, a batch of one.
        points: (S, C, H, W).
        probability: (S,) of the target.
        gradients: (S, C, H, W) of the probability.
    """

    result: Attribution
    points: Tensor
    probability: Tensor
    gradients: Tensor

    def sensitive(self, start: float) -> Tensor:
        """Return bool (S,), where p is between 10% and 90% of what it is at the image, and not saturated."""
        return (self.probability > LOW * start) & (self.probability < HIGH * start)


@contextmanager
def _gradients(classifier: Classifier, of: Score) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Keep points, probabilities and gradients of every pass; gradients of `of` become those of the probability."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    original = classifier.score_and_gradient

    def record(images: Tensor, target: Tensor, score: Score = "logit") -> tuple[Tensor, Tensor]:
        logits, gradient = original(images, target, score)
        assert score == of
        p = target_score(logits, target, "prob")
        kept.append((images.clone(), p, gradient * p.reshape(-1, 1, 1, 1) if of == "log_prob" else gradient))
        return logits, gradient

    classifier.score_and_gradient = record  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        del classifier.score_and_gradient


def walk(classifier: Classifier, method: Attributor, image: Tensor, target: int, seed: int, of: Score) -> Walked:
    """Explain one image (C, H, W) by one path.

    Args:
        classifier: of the image.
        method: of one path, whose gradients are of `of`: "log_prob" for SIGMA, "prob" for Integrated Gradients of p.
        image: that is explained.
        target: its class.
        seed: of the method.
        of: score whose gradients the method takes, "prob" or "log_prob".
    """
    with _gradients(classifier, of) as kept:
        result = method(classifier, image[None], target, seed=torch.tensor([seed], device=image.device))
    if not kept:  # the path ended where it started
        empty = image.new_zeros(0)
        return Walked(result, image.new_zeros(0, *image.shape), empty, image.new_zeros(0, *image.shape))
    points, probability, gradients = (torch.cat(part) for part in zip(*kept, strict=True))
    return Walked(result, points, probability, gradients)
