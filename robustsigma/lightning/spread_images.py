"""Which images of a validation or test loader a callback looks at, where it looks at some of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from robustsigma.data.loading import subsample


class SpreadImages:
    """Draws images from a whole loader, because the first ones of data in order are of one class.

    The places in the loader depend on its length and the seed alone, so they are the same in every epoch. Processes
    that take images in turn draw together what one process would, and at least one image each. Of a loader of unknown
    length, such as a stream, the first images are taken.

    Args:
        most: number of images, over all processes.
        seed: seed of the draw.
        batches: number of batches; infinity where it is not known.
        rank: rank of this process among those that divide the images.
        world: number of these processes.
    """

    def __init__(self, most: int, seed: int, batches: float, rank: int = 0, world: int = 1) -> None:
        self.most, self.seed, self.batches, self.rank, self.world = most, seed, batches, rank, world
        self.seen = 0  # images of this process
        self._places: Tensor | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether the number of images is not known."""
        return math.isinf(self.batches)

    def rows(self, count: int) -> Tensor:
        """Return which images of the next batch, of `count` images, are taken: int64, increasing."""
        if self._places is None:
            self._places = torch.tensor(self._drawn(count), dtype=torch.int64)
        start, self.seen = self.seen, self.seen + count
        return self._places[(self._places >= start) & (self._places < self.seen)] - start

    def _drawn(self, count: int) -> list[int]:
        if self.is_unknown:
            return [*range(-(-self.most // self.world))]
        images = round(self.batches * count) * self.world
        drawn = subsample(images, self.most, self.seed)
        return [place // self.world for place in drawn if place % self.world == self.rank] or [0]


def batch_counts(limits: Sequence[float], loaders: Any) -> list[float]:
    """Return the numbers of batches of loaders, where the last batch counts as the part of a batch that it is.

    Args:
        limits: numbers of batches that the Trainer takes.
        loaders: the loaders, in any collection.
    """
    leaves = tree_leaves(loaders)
    if len(leaves) != len(limits):
        return [*limits]
    return [_batch_count(limit, each) for limit, each in zip(limits, leaves, strict=True)]


def _batch_count(limit: float, loader: Any) -> float:
    try:
        found = len(loader.sampler) / loader.batch_size
    except (AttributeError, TypeError, NotImplementedError):  # a stream, or batches of another kind
        return limit
    return found if 1 <= limit - 1 < found < limit else limit
