"""Handwritten digits of 8x8 pixels from scikit-learn's own files: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from robustsigma.data.folder import stratified
from robustsigma.data.source import ArrayDataset, Source, Split


@dataclass(frozen=True)
class Digits(Source):
    """Scikit-learn's 1,797 grey digits, stratified into 1,197, 200 and 400.

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
        """(1, 8, 8)."""
        return 1, 8, 8

    def split(self, split: Split) -> ArrayDataset:
        """Return one split, held in memory."""
        self.check_split(split)
        images, labels = _load()
        part = stratified(labels.numpy(), 200, 400, self.seed)[split]
        return ArrayDataset(images[part], labels[part])


@lru_cache(maxsize=1)
def _load() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("Digits needs scikit-learn: pip install 'robustsigma[datasets]'") from error
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
