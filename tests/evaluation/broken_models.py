"""Classifiers by class means, which need no training, and what breaks an evaluation of them by attacks.

Each is whole while it trains and broken in eval mode, in which it is attacked and tested.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustsigma.data import Digits
from robustsigma.data.loading import load_batch

MEAN, STD = 0.5, 0.25  # of the evaluation's normalization


class Plain(nn.Module):
    """logit of class k = scale * (x . m_k - |m_k|^2 / 2), m_k the mean image of the class."""

    def __init__(self, classes: int, channels: int = 1, scale: float = 6.0) -> None:
        super().__init__()
        split = Digits().split("train")
        x, y = load_batch(split, range(len(split)))
        means = torch.stack([x[y == k].mean(0).flatten() for k in range(classes)])
        self.scale = scale
        self.means = nn.Parameter(means)
        self.offset = nn.Parameter(-means.square().sum(1) / 2)

    def score(self, images: Tensor) -> Tensor:
        return self.scale * (images.flatten(1) @ self.means.T + self.offset)

    def broken(self, images: Tensor) -> Tensor:
        return self.score(images)

    def forward(self, x: Tensor) -> Tensor:
        images = x * STD + MEAN
        return self.score(images) if self.training else self.broken(images)


class Thresholded(Plain):
    """Pixels are rounded to five levels, so that no gradient comes through."""

    def broken(self, images):
        return self.score((images * 4).round() / 4)


class Saturated(Plain):
    """Logits are so large that the softmax of a right answer is 1 and its loss has no gradient."""

    def broken(self, images):
        return 1e4 * self.score(images)


class Shattered(Plain):
    """A ripple too small to change an answer turns the gradient's sign from one pixel value to the next."""

    def broken(self, images):
        return self.score(images + 0.002 * torch.sin(2e4 * images))


class Randomized(Plain):
    """Logits come with noise that is another at each call."""

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__(classes, channels)
        self.source = torch.Generator().manual_seed(0)

    def broken(self, images):
        logits = self.score(images)
        return logits + 0.5 * torch.randn(logits.shape, generator=self.source).to(logits.device)


class Probabilities(Plain):
    """Outputs have been through a softmax."""

    def broken(self, images):
        return self.score(images).softmax(1)


class BatchStatistics(Plain):
    """Images are centered by the mean of their batch, as BatchNorm with batch statistics does."""

    def broken(self, images):
        return self.score(images - images.mean() + 0.3)
