"""Stored corruptions in the layout of CIFAR-10-C."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustsigma.data.source import ArrayDataset, DatasetSpec, Split
from robustsigma.engine.validation import choice, fail

_SEVERITIES = 5


@dataclass(frozen=True)
class CorruptionArrays(DatasetSpec):
    """One corruption of CIFAR-10-C, CIFAR-100-C or arrays like them (Hendrycks and Dietterich, 2019), as test images.

    A source and no perturbation: the files hold other images, not a function of clean ones. Files are never fetched.

    Args:
        root: folder with NAME.npy, uint8 (5 N, H, W, C), the severities 1 to 5 one after the other with N images
            each, and labels.npy, (5 N,).
        name: of the corruption, such as gaussian_noise.
        severity: 1 to 5.
    """

    root: str
    name: str
    severity: int

    def __post_init__(self) -> None:
        if type(self.severity) is not int or self.severity not in range(1, _SEVERITIES + 1):
            raise fail("severity", "an integer from 1 to 5", repr(self.severity))

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels as text; the files know no names."""
        return tuple(str(label) for label in range(int(self._labels().max()) + 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, height, width, channels = self._images().shape
        return channels, height, width

    def split(self, split: Split) -> ArrayDataset:
        """Return the N images of the severity; "test" is the only split that there is.

        Raises:
            ValueError: another split, or files that are missing or of another layout.
        """
        self.check_split(split)
        if split != "test":
            raise fail("split", "'test', since stored corruptions are for testing alone", repr(split))
        images, labels = self._images(), self._labels()
        count = len(images) // _SEVERITIES
        rows = slice((self.severity - 1) * count, self.severity * count)
        pixels = torch.from_numpy(np.array(images[rows])).permute(0, 3, 1, 2).contiguous()
        return ArrayDataset(pixels, torch.from_numpy(np.array(labels[rows])).long())

    def _images(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        known = sorted(path.stem for path in Path(self.root).glob("[!.]*.npy") if path.stem != "labels")
        if not known:
            raise fail("root", "a folder with NAME.npy and labels.npy", repr(self.root))
        choice("name", self.name, known)
        images = _read(Path(self.root) / f"{self.name}.npy")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or len(images) % _SEVERITIES:
            raise fail("name", "uint8 (5 N, H, W, C), C 1 or 3", f"{images.dtype} {images.shape} in {self.name}.npy")
        return images

    def _labels(self) -> np.ndarray[Any, Any]:
        labels, count = _read(Path(self.root) / "labels.npy"), len(self._images())
        if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise fail("root", f"labels.npy of {count} class indices", f"{labels.dtype} {labels.shape}")
        return labels


def _read(path: Path) -> np.ndarray[Any, Any]:
    """Return an array that stays on disk until it is indexed."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise fail("root", f"a readable array {path}", error) from error
