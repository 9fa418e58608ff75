"""A part of a dataset, decoded once and held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from robustsigma.data.loading import chosen, take
from robustsigma.data.source import ArrayDataset, Source, Split


@dataclass(frozen=True)
class InMemory(Source):
    """Some images of each split of another dataset, drawn at random, without their masks.

    Args:
        source: the dataset; equal ones must have equal hashes.
        train: most training images.
        val: most validation images.
        test: most test images.
    """

    source: Source
    train: int
    val: int
    test: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the dataset."""
        return self.source.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the dataset."""
        return self.source.shape

    def split(self, split: Split) -> ArrayDataset:
        """Return the images of one split."""
        self.check_split(split)
        return _read(self.source, split, getattr(self, split))


@lru_cache(maxsize=3)
def _read(source: Source, split: Split, most: int) -> ArrayDataset:
    dataset = source.split(split)
    images, labels = take(dataset, chosen(len(dataset), most, 0))  # type: ignore[arg-type]
    return ArrayDataset((images * 255).round().to(torch.uint8), labels)
