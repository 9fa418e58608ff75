"""MedMNIST: small medical images in the .npz files that its authors publish."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustsigma.data.class_index import class_names
from robustsigma.data.source import ArrayDataset, DatasetSpec, Split
from robustsigma.engine.validation import fail

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class MedMNIST(DatasetSpec):
    """A file of MedMNIST v2 (Yang et al., 2023) with one label an image, such as pathmnist.npz or bloodmnist_64.npz.

    It holds `SPLIT_images`, uint8 (N, H, W) or (N, H, W, 3), and `SPLIT_labels`, (N, 1), for each split; other files
    of these arrays do as well. Pickled objects in a file are refused.

    Args:
        path: of the file.
        class_list: names by label; None uses the labels as text.
    """

    path: str
    class_list: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.class_list is not None:
            object.__setattr__(self, "class_list", class_names("class_list", self.class_list))

    @property
    def classes(self) -> tuple[str, ...]:
        """The given names, or labels as text."""
        most = max(int(labels.max()) for _, labels in _load(self.path).values())
        if self.class_list is None:
            return tuple(map(str, range(most + 1)))
        if most >= len(self.class_list):
            raise fail("class_list", f"a name for each of {most + 1} classes", len(self.class_list))
        return self.class_list

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = _load(self.path)["train"][0].shape[1:]
        return channels, height, width

    def split(self, split: Split) -> ArrayDataset:
        """Return the images of one split, which MedMNIST makes itself."""
        self.check_split(split)
        _ = self.classes
        return ArrayDataset(*_load(self.path)[split])


@lru_cache(maxsize=2)
def _load(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    if not Path(path).is_file():
        raise fail("path", "an existing .npz file of MedMNIST", path)
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {split: (file[f"{split}_images"], file[f"{split}_labels"]) for split in _SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise fail("path", "an .npz file with images and labels of train, val and test", f"{path} ({error})") from error
    found = {split: _checked(images, labels, f"{split} of {path}") for split, (images, labels) in parts.items()}
    shapes: Sequence[torch.Size] = [images.shape[1:] for images, _ in found.values()]
    if len(set(shapes)) != 1:
        raise fail("path", f"images of one shape in {path}", list(map(tuple, shapes)))
    return found


def _checked(images: np.ndarray, labels: np.ndarray, where: str) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and labels (N,)."""
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        expected = f"two-dimensional images, uint8 (N, H, W) or (N, H, W, 3), in {where}"
        raise fail("path", expected, f"{images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images), 1), (len(images),)) or not len(images):
        raise fail("path", f"one whole number for each of {len(images)} images as labels in {where}", labels.shape)
    if labels.min() < 0 or labels.max() > 10**6:
        raise fail("path", f"labels from 0 in {where}", f"{labels.min()} to {labels.max()}")
    pixels = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.reshape(-1).astype(np.int64))
