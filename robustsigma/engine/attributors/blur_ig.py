"""Blur Integrated Gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution
from robustsigma.engine.attributors.path_methods import CurvedPath, Line, PathMethod, mean_over_paths
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score

_SHARP = 1e-3  # the least standard deviation in pixels: no two pixels mix


def blurred(images: Tensor, stds: Tensor) -> Tensor:
    """Return images under Gaussians of several widths, (B, S, C, H, W); beyond the borders lies black.

    The sampled Gaussian sums to 1 over all places, within the image or not.

    Args:
        images: (B, C, H, W).
        stds: (S,) standard deviations in pixels.
    """
    rows, columns = (_matrix(size, stds) for size in images.shape[2:])
    return rows[:, None] @ images[:, None] @ columns[:, None].transpose(2, 3)


def _matrix(size: int, stds: Tensor) -> Tensor:
    """Return (S, size, size): what each place of a line takes from each other."""
    spread = stds.clamp(min=_SHARP).reshape(-1, 1, 1)
    place = torch.arange(size, dtype=stds.dtype, device=stds.device)
    reach = math.ceil(8 * max(1.0, float(stds.max())))
    offsets = torch.arange(-reach, reach + 1, dtype=stds.dtype, device=stds.device)
    total = torch.exp(-0.5 * (offsets / spread).square()).sum(2, keepdim=True)
    return torch.exp(-0.5 * ((place[:, None] - place) / spread).square()) / total


@dataclass(frozen=True, eq=False)
class BlurCurve(CurvedPath):
    """The path from each image under a Gaussian to the image, the Gaussian's width falling evenly."""

    max_sigma: float = 0.0

    def place(self, rows: slice, t: Tensor) -> Tensor:
        """Return the images under Gaussians of (1 - t) `max_sigma`."""
        return blurred(self.images[rows], (1 - t) * self.max_sigma)


@dataclass(frozen=True)
class BlurIG(PathMethod):
    """Blur IG: the integral over the blur's width s of dF(x_s)/dx_s * dx_s/ds (Xu et al., 2020, eq. 6).

    x_s is the image under a Gaussian with standard deviation s, which falls evenly from `max_sigma` to 0 (black lies
    beyond the image's borders, as in the authors' code). `values` sum to F(x) - F(x under `max_sigma`) up to the error
    of a midpoint rule, for which the image's change over each step stands for the derivative by s times the step;
    they do so exactly on a linear network. There is no baseline to choose: `endpoint` is the most blurred image.

    It costs `steps` forward and backward passes, and one forward pass for each end. Most of what an image shows
    changes below a few pixels of blur: a smaller `max_sigma` has more steps there.

    Args:
        steps: number of steps in the blur's width, a gradient each.
        max_sigma: largest standard deviation in pixels. The authors' code has 50, for images of about 300 pixels.
        score: F.

    Example:
        >>> BlurIG(steps=50, max_sigma=20)(classifier, images, target).gap()
    """

    steps: int = 100
    max_sigma: float = 50.0
    score: Score = "logit"

    def __post_init__(self) -> None:
        validation.integer("steps", self.steps, 1)
        validation.number("max_sigma", self.max_sigma, 0, 1e4, open_low=True)

    def lines(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> list[Line]:
        """Return the path through blurred images."""
        high = target_score(logits, target, self.score).to(images.dtype)
        end = blurred(images, images.new_tensor([self.max_sigma]))[:, 0].clamp(*classifier.bounds)
        low = classifier.score(end, target, self.score).to(images.dtype)
        return [BlurCurve(classifier, images, end, target, self.score, high, low, max_sigma=self.max_sigma)]

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return Blur IG."""
        (line,) = self.lines(classifier, images, target, logits, seeds)
        assert isinstance(line, CurvedPath)
        return mean_over_paths([line.integrated(self.steps)], forwards=2)
