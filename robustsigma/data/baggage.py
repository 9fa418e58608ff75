"""Procedural X-ray baggage scans: one of five prohibited items over clutter, seen through each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from robustsigma.data.baggage_shapes import CLUTTER, ITEMS, Canvas, bag
from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, Split
from robustsigma.engine.validation import choice, fail, integer, several

_NAMES = tuple(ITEMS)
_SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Absorption of red, green and blue by organic (shown orange), mixed (green) and metal (blue), at full thickness.
_ABSORPTION = np.array([[0.25, 1.3, 3.2], [2.9, 1.0, 2.3], [4.2, 2.6, 0.9]], dtype=np.float32)
_CLUTTER = tuple(paint.__name__ for paint, *_ in CLUTTER)


@dataclass(frozen=True)
class Baggage(DatasetSpec):
    """Pseudo-colored scans of bags, each with exactly one gun, knife, wrench, pair of pliers or scissors.

    Everything is translucent: colors follow Beer and Lambert's law for three materials. Image i of a split depends
    only on (seed, split, i, size), so that a smaller dataset is a prefix of a larger one. Datasets have `masks`, True
    where the item absorbs. They are made once per process and shared, so do not write into them.

    Args:
        size: side in pixels, 16 to 299.
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        seed: seed of all random choices.
        clutter: kinds of objects around the item, of clothes, bottle, carton, cable, laptop, rod, ring, keys and
            gadget; None is all. A test set of kinds that training did not show measures how much a network depends on
            the background.

    Example:
        >>> Baggage(size=32, train=100).split("train").masks.shape
        torch.Size([100, 32, 32])
        >>> shifted = Baggage(clutter=("cable", "rod", "ring", "keys", "gadget"))
    """

    size: int = 64
    train: int = 4000
    val: int = 500
    test: int = 1000
    seed: int = 0
    clutter: Sequence[str] | None = None

    def __post_init__(self) -> None:
        integer("size", self.size, 16, 299)
        for name in _SPLITS:
            integer(name, getattr(self, name), 1)
        integer("seed", self.seed, 0)
        if self.clutter is not None:
            several("clutter", self.clutter)
            if not self.clutter:
                raise fail("clutter", "at least one kind of object", "none")
            for kind in self.clutter:
                choice("clutter", kind, _CLUTTER)
            object.__setattr__(self, "clutter", tuple(self.clutter))

    @property
    def classes(self) -> tuple[str, ...]:
        """The five prohibited items."""
        return _NAMES

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self.size, self.size

    def split(self, split: Split) -> ArrayDataset:
        """Return the scans of one split with the masks of their items."""
        self.check_split(split)
        return _generate(self.size, getattr(self, split), self.seed, split, tuple(self.clutter or _CLUTTER))


@lru_cache(maxsize=8)
def _generate(size: int, count: int, seed: int, split: Split, clutter: tuple[str, ...]) -> ArrayDataset:
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    masks = np.empty((count, size, size), dtype=bool)
    labels = np.array([label_of(seed, split, i) for i in range(count)], dtype=np.int64)
    for i in range(count):
        rng = np.random.default_rng((seed, _SPLITS.index(split), i, 1))
        images[i], masks[i] = render(rng, size, int(labels[i]), clutter=clutter)
    channels_first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ArrayDataset(channels_first, torch.from_numpy(labels), torch.from_numpy(masks))


def label_of(seed: int, split: Split, index: int) -> int:
    """Return the class of an image: every five images in a row hold each class once, in a random order."""
    block, place = divmod(index, len(_NAMES))
    order = np.random.default_rng((seed, _SPLITS.index(split), block, 0)).permutation(len(_NAMES))
    return int(order[place])


def render(
    rng: np.random.Generator, size: int, label: int, *, item: bool = True, clutter: tuple[str, ...] = _CLUTTER
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one scan (size, size, 3) and the mask (size, size) of its item.

    Without `item`, the item does not absorb and the rest of the scan is the same.
    """
    canvas = Canvas(size, (0.5, 0.5), 1.0, rng.normal(0, 0.05))
    bag(canvas, rng)
    total = canvas.thickness()
    kinds = [entry for entry in CLUTTER if entry[0].__name__ in clutter]
    weights = np.array([weight for *_, weight in kinds])
    for kind in rng.choice(len(kinds), int(rng.integers(4, 10)), p=weights / weights.sum()):
        paint, low, high, _ = kinds[kind]
        scale = rng.uniform(low, high)
        x, y = rng.uniform(0.1 + scale * 0.8, 0.9 - scale * 0.8, 2)
        canvas = Canvas(size, (x, y), scale, rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.0))
        paint(canvas, rng)
        total += canvas.thickness()
    scale = rng.uniform(0.24, 0.36)
    x, y = rng.uniform(0.12 + scale, 0.88 - scale, 2)
    squash = rng.uniform(0.65, 1.0) * rng.choice([-1, 1])
    canvas = Canvas(size, (x, y), scale, rng.uniform(0, 2 * np.pi), squash)
    ITEMS[_NAMES[label]](canvas, rng)
    thickness = canvas.thickness()
    if item:
        total += thickness
    light = np.exp(-(total @ _ABSORPTION)) * rng.uniform(0.96, 1.0)
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(0.005, 0.02))
    scan = light + noise * np.sqrt(light)
    mask: NDArray[np.bool_] = np.any(thickness > 0, axis=2)
    return (np.clip(scan, 0, 1) * 255 + 0.5).astype(np.uint8), mask
