"""How SIGMA's walk keeps the images it evaluates in the valid range while its latent point wanders."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

RangeMode = Literal["original", "full", "clip", "none"]
RANGE_MODES: tuple[RangeMode, ...] = ("original", "full", "clip", "none")

# Published runs hold pixels in [0, 255]; their constants mean something only in those units.
AUTHORS_UNIT = 255.0
_AUTHORS_FLOOR = 1e-10

_PER_IMAGE = (-1, 1, 1, 1)


class ImageRange(Protocol):
    """Maps latent points to images that the network sees; `rows` says which row of the walk each point belongs to."""

    def probe(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the images at which the slope is measured."""

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the images, in range, at which the walk stands."""


def _extent(points: Tensor) -> tuple[Tensor, Tensor]:
    flat = points.flatten(1)
    return flat.amin(1), flat.amax(1)


class AffineRange:
    """Maps each point affinely from its own [min, max]: to its image's ("original") or to all of the range ("full")."""

    def __init__(self, mode: RangeMode, images: Tensor, bounds: tuple[float, float]) -> None:
        self.bounds = bounds
        if mode == "original":
            self.low, self.high = _extent(images)
        else:
            self.low = images.new_full((len(images),), bounds[0])
            self.high = images.new_full((len(images),), bounds[1])

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the mapped points; a constant one becomes its row's low end."""
        low, high = _extent(points)
        span = high - low
        slope = (self.high[rows] - self.low[rows]) / torch.where(span > 0, span, 1)
        mapped = (points - low.reshape(_PER_IMAGE)) * slope.reshape(_PER_IMAGE) + self.low[rows].reshape(_PER_IMAGE)
        return mapped.clamp(*self.bounds)

    probe = point


class ClippedRange:
    """Clips every image, or ("none") only the points and not the probes."""

    def __init__(self, mode: RangeMode, bounds: tuple[float, float]) -> None:
        self.bounds, self.clips_probes = bounds, mode == "clip"

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the clipped points."""
        return points.clamp(*self.bounds)

    def probe(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the probes, clipped in mode "clip"."""
        return points.clamp(*self.bounds) if self.clips_probes else points


class AuthorsRange:
    """The published code's stretch of latent points in [0, 255]: M(v) = 255 (v - min) / (max - min + 1e-10)."""

    def _stretch(self, points: Tensor) -> Tensor:
        low, high = (end.reshape(_PER_IMAGE) for end in _extent(points))
        return (points - low) / (high - low + _AUTHORS_FLOOR) * AUTHORS_UNIT

    def probe(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return M(v) / 255."""
        return self._stretch(points) / AUTHORS_UNIT

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return M(M(v)) / 255: the code stretches the point when it makes it and again when it scores it."""
        return (self._stretch(self._stretch(points)) / AUTHORS_UNIT).clamp(0, 1)


def image_range(mode: RangeMode, images: Tensor, bounds: tuple[float, float]) -> ImageRange:
    """Return the map of a mode for rows that start at `images`."""
    return AffineRange(mode, images, bounds) if mode in ("original", "full") else ClippedRange(mode, bounds)
