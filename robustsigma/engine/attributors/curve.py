"""Gradients along curved paths to images that are known before any gradient is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine.attributors.straight_line import Line, Path, rectangles


@dataclass(frozen=True, eq=False)
class Curve(Line):
    """A path that may bend, from `base` to each image. Its points are equally spaced and the same for all images."""

    @abstractmethod
    def place(self, rows: slice, t: Tensor) -> Tensor:
        """Return the points at t (s,) of the paths of some images, (g, s, C, H, W); the image is at 1."""

    def _points(self, at: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Yield the same as for a line; delta is the change over the step of which the point is the middle."""
        half = 0.5 / at.shape[1]
        for rows, columns in rectangles(at, self.classifier.chunk_for(self.images)):
            t = at[0, columns]
            changes = self.place(rows, torch.cat([t - half, t[-1:] + half]).clamp(0, 1)).diff(dim=1)
            classes = self.target[rows].repeat_interleave(len(t))
            yield rows, columns, changes, self.place(rows, t).flatten(0, 1), classes

    def integrated(self, steps: int) -> Path:
        """Return the sum over steps of the gradient in a step's middle times the step's change of the image."""
        middles = self.expanded([(step + 0.5) / steps for step in range(steps)])
        return Path(self, *self.weighted_sum(middles, torch.ones_like(middles)))
