"""Handwritten digits of 8x8 pixels from scikit-learn's own files: real images without a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from robustsigma.data.ten_digits import TenDigits


@dataclass(frozen=True)
class Digits(TenDigits):
    """Scikit-learn's 1,797 gray digits, stratified into 1,197, 200 and 400.

    Args:
        seed: of the split.
    """

    side: ClassVar[int] = 8
    val: ClassVar[int] = 200
    test: ClassVar[int] = 400

    @staticmethod
    def load() -> tuple[torch.Tensor, torch.Tensor]:
        """Return all images and labels, read once."""
        return _load()


@lru_cache(maxsize=1)
def _load() -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("Digits needs scikit-learn: pip install 'robustsigma[datasets]'") from error
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
