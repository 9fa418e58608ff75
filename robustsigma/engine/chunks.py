"""Batches in parts: as many images in a pass as fit into a device's cache or memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Elements of one chunk on a CPU: 170 images of 3x64x64 or 13 of 3x224x224. In chunks of twice that, an image's gradient
# takes up to twice as long (EfficientNet-Lite0 at 224: 43 against 22 ms); in chunks of half that, as long or a little
# longer. On a GPU the 256 images of 3x224x224 at which an H200 is fastest.
_CPU_ELEMENTS = 2**21
_GPU_ELEMENTS = 256 * 3 * 224**2


def split_sizes(count: int, most: int) -> list[int]:
    """Return the sizes of the fewest parts of `count` items: of `most` each, the last two even where little is left."""
    full, rest = divmod(count, most)
    if full == 0 or rest == 0:
        return [most] * full if full else [count]
    if 2 * rest >= most:
        return [*[most] * full, rest]
    half = (most + rest) // 2
    return [*[most] * (full - 1), most + rest - half, half]


class Chunks:
    """Runs functions of batches in chunks, and remembers how many elements fit where memory ran out."""

    def __init__(self) -> None:
        self.fits: int | None = None  # elements, where more did not fit

    def size_for(self, images: Tensor, most: int | None) -> int:
        """Return how many images like these make a chunk: `most`, or without it a number chosen by image size."""
        each = max(1, images[0].numel())
        elements = _CPU_ELEMENTS if images.device.type == "cpu" else _GPU_ELEMENTS
        size = max(1, elements // each) if most is None else most
        return size if self.fits is None else min(size, max(1, self.fits // each))

    def run(self, function: Callable[..., Any], most: int | None, images: Tensor, *others: Tensor) -> Any:
        """Return what a function gives for images and others, called for as many rows as fit and joined."""
        size = min(self.size_for(images, most), len(images))
        while True:
            try:
                return _run(function, size, images, *others)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside the handler, whose traceback holds the failed pass's tensors.
            torch.cuda.empty_cache()
            size //= 2
            self.fits = size * images[0].numel()


def _run(function: Callable[..., Any], size: int, *tensors: Tensor) -> Any:
    if len(tensors[0]) <= size:
        return function(*tensors)
    lengths = split_sizes(len(tensors[0]), size)
    parts = [function(*chunk) for chunk in zip(*(t.split(lengths) for t in tensors), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(parts)
