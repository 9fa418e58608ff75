"""`MedMNIST` and `CorruptionArrays`: datasets that are published as NumPy files of whole splits."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from robustsigma.data.class_names import class_names
from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, Split
from robustsigma.engine.validation import choice, fail

_SEVERITIES = 5
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class MedMNIST(DatasetSpec):
    """A file of MedMNIST v2 (Yang et al., 2023) with one label per image, such as pathmnist.npz or bloodmnist_64.npz.

    For each split, the file holds `SPLIT_images`, uint8 (N, H, W) or (N, H, W, 3), and `SPLIT_labels`, (N, 1). Any
    other file of such arrays works as well. Pickled objects in a file are refused.

    Args:
        path: the file.
        class_list: names by label. None uses the labels as text.

    Example:
        >>> MedMNIST("bloodmnist_64.npz").shape
        (3, 64, 64)
    """

    path: str
    class_list: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.class_list is not None:
            object.__setattr__(self, "class_list", class_names("class_list", self.class_list))

    @property
    def classes(self) -> tuple[str, ...]:
        """`class_list`, or the labels as text."""
        count = 1 + max(int(labels.max()) for _, labels in _load_splits(self.path).values())
        if self.class_list is None:
            return tuple(map(str, range(count)))
        if count > len(self.class_list):
            raise fail("class_list", f"a name for each of {count} classes", len(self.class_list))
        return self.class_list

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = _load_splits(self.path)["train"][0].shape[1:]
        return channels, height, width

    def split(self, split: Split) -> ArrayDataset:
        """Return the images of one split, as MedMNIST splits them."""
        self.check_split(split)
        _ = self.classes  # checks the names
        return ArrayDataset(*_load_splits(self.path)[split])


@lru_cache(maxsize=2)
def _load_splits(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (N, C, H, W) and labels (N,) of each split."""
    if not Path(path).is_file():
        raise fail("path", "an existing .npz file of MedMNIST", path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {split: (file[f"{split}_images"], file[f"{split}_labels"]) for split in get_args(Split)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise fail("path", "an .npz file with images and labels of train, val and test", f"{path} ({error})") from error
    for split, (images, labels) in arrays.items():
        where, shape = f"{split} of {path}", images.shape
        if images.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
            told = f"two-dimensional images, uint8 (N, H, W) or (N, H, W, 3), in {where}"
            raise fail("path", told, f"{images.dtype} {shape}")
        if labels.dtype.kind not in "iu" or labels.shape not in ((len(images), 1), (len(images),)) or not len(images):
            raise fail("path", f"one whole number for each of {len(images)} images as labels in {where}", labels.shape)
        if labels.min() < 0 or labels.max() > 10**6:
            raise fail("path", f"labels from 0 in {where}", f"{labels.min()} to {labels.max()}")
        if shape[1:] != arrays["train"][0].shape[1:]:
            raise fail("path", f"images of one shape in {path}", f"{arrays['train'][0].shape[1:]} and {shape[1:]}")
    return {
        split: (_channels_first(images.reshape(*images.shape[:3], -1)), _integers(labels.reshape(-1)))
        for split, (images, labels) in arrays.items()
    }


def _channels_first(images: Array) -> Tensor:
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


def _integers(labels: Array) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class CorruptionArrays(DatasetSpec):
    """One corruption of CIFAR-10-C, CIFAR-100-C or arrays like them (Hendrycks and Dietterich, 2019), as test images.

    It is a dataset and no perturbation: the files hold other images, not a function of clean ones. Files are not
    downloaded.

    Args:
        root: folder with NAME.npy, uint8 (5 N, H, W, C), which holds the severities 1 to 5 in order with N images
            each, and labels.npy, (5 N,).
        name: name of the corruption, such as gaussian_noise.
        severity: 1 to 5.

    Example:
        >>> CorruptionArrays("CIFAR-10-C", "fog", severity=3).splits
        ('test',)
    """

    root: str
    name: str
    severity: int

    def __post_init__(self) -> None:
        if type(self.severity) is not int or self.severity not in range(1, _SEVERITIES + 1):
            raise fail("severity", "an integer from 1 to 5", repr(self.severity))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels as text, since the files have no names."""
        return tuple(str(label) for label in range(int(self._labels().max()) + 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, height, width, channels = self._images().shape
        return channels, height, width

    @property
    def splits(self) -> tuple[Split, ...]:
        """Only "test"."""
        return ("test",)

    def split(self, split: Split) -> ArrayDataset:
        """Return the N images of the severity. "test" is the only split.

        Raises:
            ValueError: another split, or files that are missing or have another layout.
        """
        self.check_split(split)
        if split != "test":
            raise fail("split", "'test', since stored corruptions are for testing alone", repr(split))
        images, labels = self._images(), self._labels()
        count = len(images) // _SEVERITIES
        rows = slice((self.severity - 1) * count, self.severity * count)
        return ArrayDataset(_channels_first(images[rows]), _integers(labels[rows]))

    def _images(self) -> Array:
        known = sorted(path.stem for path in Path(self.root).glob("[!.]*.npy") if path.stem != "labels")
        if not known:
            raise fail("root", "a folder with NAME.npy and labels.npy", repr(self.root))
        choice("name", self.name, known)
        images = _read(Path(self.root) / f"{self.name}.npy")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or len(images) % _SEVERITIES:
            raise fail("name", "uint8 (5 N, H, W, C), C 1 or 3", f"{images.dtype} {images.shape} in {self.name}.npy")
        return images

    def _labels(self) -> Array:
        labels, count = _read(Path(self.root) / "labels.npy"), len(self._images())
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise fail("root", f"labels.npy of {count} class indices", f"{labels.dtype} {labels.shape}")
        return labels


def _read(path: Path) -> Array:
    """Return an array that stays on disk until it is indexed."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise fail("root", f"a readable array {path}", error) from error
