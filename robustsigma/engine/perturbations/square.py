"""Square, an attack without gradients: where it finds errors that gradient attacks miss, gradients are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Norm
from robustsigma.engine.perturbations.base import Perturbation, Perturbed

_FIRST, _LAST = 0.5, 0.02  # fraction of the image that a square covers


@dataclass(frozen=True)
class Square(Perturbation):
    """Random search at the corners of the L-infinity ball, in the manner of Andriushchenko et al. (2020).

    The search starts at vertical stripes, with one random sign for each column and channel. Each query moves a square
    at a random place to +eps or -eps, with one sign for each channel. An image keeps the move if it lowers the margin,
    the logit of the label minus the highest other logit. Squares shrink geometrically from half of the image to 1/50.

    Args:
        eps: L-infinity radius in pixel units of [0, 1].
        queries: number of forward passes.

    Example:
        >>> adversarial = Square(8 / 255, queries=1000)(classifier, images, labels, seed=0)
    """

    eps: float = 8 / 255
    queries: int = 100
    norm: ClassVar[Norm] = "linf"

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, 1)
        validation.integer("queries", self.queries, 1)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return the images with the lowest margins that were found."""
        batch, channels, height, width = images.shape
        signs = _signs(noise.uniform(noise.fold(seeds, "stripes"), (channels, 1, width), images.dtype))
        best = (images + self.eps * signs).clamp(*classifier.bounds)
        lowest = _margin(classifier.logits(best), labels)
        rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
        for query in range(1, self.queries):
            area = _FIRST * (_LAST / _FIRST) ** (query / self.queries)
            side = max(1, round((area * height * width) ** 0.5))
            drawn = noise.uniform(noise.fold(seeds, "square", query), (2 + channels,), images.dtype)
            top, left = (_place(drawn[:, axis], size, side) for axis, size in ((0, height), (1, width)))
            inside = _span(rows, top, side)[:, None, :, None] & _span(columns, left, side)[:, None, None, :]
            moved = (images + self.eps * _signs(drawn[:, 2:, None, None])).clamp(*classifier.bounds)
            tried = torch.where(inside, moved, best)
            margin = _margin(classifier.logits(tried), labels)
            better = margin < lowest
            best = torch.where(better.view(batch, 1, 1, 1), tried, best)
            lowest = torch.where(better, margin, lowest)
        if lowest.isnan().any():  # no margin is lower than NaN: the search never moved
            raise validation.not_finite("scores", self)
        return Perturbed.plain(best)


def _signs(drawn: Tensor) -> Tensor:
    return 1 - 2 * (drawn < 0.5).to(drawn.dtype)


def _place(drawn: Tensor, size: int, side: int) -> Tensor:
    return (drawn * (max(size - side, 0) + 1)).long()[:, None]


def _span(places: Tensor, start: Tensor, side: int) -> Tensor:
    return (places >= start) & (places < start + side)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)
