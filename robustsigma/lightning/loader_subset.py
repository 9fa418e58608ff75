"""Draw the same random images of a validation or test loader in every epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_fabric.utilities.data import sized_len
from torch import Tensor

from robustsigma.data.loading import subsample


class LoaderSubset:
    """Draws images from a whole loader, because the first ones of data in order are of one class.

    The places in the loader depend on its length and the seed alone, so they are the same in every epoch. Processes
    that take images in turn draw together what one process would, and at least one image each. Of a loader of unknown
    length, such as a stream, the first images are taken.

    Args:
        most: number of images, over all processes.
        seed: seed of the draw.
        batches: numbers of batches that there are at least and at most; infinity where they are not known.
        rank: rank of this process among those that divide the images.
        world: number of these processes.
    """

    def __init__(self, most: int, seed: int, batches: tuple[float, float], rank: int = 0, world: int = 1) -> None:
        self.most, self.seed, self.batches, self.rank, self.world = most, seed, batches, rank, world
        self.seen = 0  # images of this process
        self._places: Tensor | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether the number of images is not known."""
        return math.isinf(self.batches[1])

    def rows(self, count: int) -> Tensor:
        """Return which images of the next batch, of `count` images, are taken: int64, increasing."""
        if self._places is None:
            self._places = torch.tensor(self._drawn(count), dtype=torch.int64)
        start, self.seen = self.seen, self.seen + count
        return self._places[(self._places >= start) & (self._places < self.seen)] - start

    def _drawn(self, count: int) -> list[int]:
        if self.is_unknown:
            return [*range(-(-self.most // self.world))]
        low, high = (round(each * count) * self.world for each in self.batches)
        drawn = subsample(low if high > self.most else high, self.most, self.seed)
        return [place // self.world for place in drawn if place % self.world == self.rank] or [0]


def batch_counts(trainer: Any) -> list[tuple[float, float]]:
    """Return the least and largest number of batches of each loader of the validation or test that runs.

    The last batch counts as the part of a batch that it is. The numbers are infinity where a loader does not know them:
    a limit of the Trainer says nothing then, as there may be fewer.
    """
    limits: list[float] = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.state.fn != "fit":  # `trainer.val_dataloaders` may be those of an earlier fit
        loop = trainer.test_loop if trainer.testing else trainer.validate_loop
    combined = getattr(loop, "_combined_loader", None)
    loaders = getattr(combined, "flattened", [])
    if getattr(combined, "_mode", "sequential") != "sequential":  # each batch has a part of each loader
        counts = [_batch_count(sized_len(combined) or math.inf, each) for each in loaders]
        return [(min(low for low, _ in counts), max(high for _, high in counts))]
    loaders = loaders if len(loaders) == len(limits) else [None] * len(limits)
    return [_batch_count(limit, each) for limit, each in zip(limits, loaders, strict=True)]


def _batch_count(limit: float, loader: Any) -> tuple[float, float]:
    if loader is not None and sized_len(loader) is None:
        return math.inf, math.inf
    try:
        found = len(loader.sampler) / loader.batch_size
    except (AttributeError, TypeError, NotImplementedError):  # batches of another kind, the last of any size
        return max(1, limit - 1), limit
    exact = min(limit, max(1, found))
    return (exact, exact) if exact > limit - 1 else (max(1, limit - 1), limit)
