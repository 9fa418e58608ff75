"""How SIGMA's walk keeps the images that it evaluates in range while its latent point moves freely."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RangeMode = Literal["original", "full", "clip", "none"]
RANGE_MODES: tuple[RangeMode, ...] = ("original", "full", "clip", "none")


class ImageRange:
    """Maps latent points (N, C, H, W) of a walk to images; `rows` (N,) are the rows of the walk that they belong to.

    Args:
        mode: "original" maps each point affinely from its own [min, max] to that of its row's image, "full" to all of
            the bounds; "clip" clips, and "none" clips only the points of the path.
        images: (R, C, H, W), at which the rows start.
        bounds: of pixels.
    """

    def __init__(self, mode: RangeMode, images: Tensor, bounds: tuple[float, float]) -> None:
        self.mode, self.bounds = mode, bounds
        self.low, self.high = images.flatten(1).aminmax(dim=1)
        if mode == "full":
            self.low, self.high = (torch.full_like(self.low, bound) for bound in bounds)

    def probe(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the images at which the slope is measured."""
        return points if self.mode == "none" else self.point(points, rows)

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the images of the path; a constant point of an affine mode becomes its row's low end."""
        if self.mode in ("clip", "none"):
            return points.clamp(*self.bounds)
        per_image = (-1, 1, 1, 1)
        low, high = points.flatten(1).aminmax(dim=1)
        span = high - low
        slope = (self.high[rows] - self.low[rows]) / torch.where(span > 0, span, 1)
        mapped = (points - low.reshape(per_image)) * slope.reshape(per_image) + self.low[rows].reshape(per_image)
        return mapped.clamp(*self.bounds)
