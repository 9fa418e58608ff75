"""Images in one folder per class, and the stratified split that other sources share."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.source import Source, Split

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def stratified(labels: Sequence[int] | NDArray[np.int64], val: int, test: int, seed: int) -> dict[Split, list[int]]:
    """Split indices at random, every class in proportion.

    Args:
        labels: class of each image.
        val: how many images go to "val".
        test: how many go to "test"; the rest is "train".
        seed: of the choice.

    Returns:
        Increasing indices per split; they are disjoint and cover everything.
    """
    of = np.asarray(labels)
    if val < 0 or test < 0 or val + test >= len(of):
        raise ValueError(f"val and test: expected to leave training images of {len(of)}, got {val} and {test}")
    rng = np.random.default_rng(seed)
    rank = np.empty(len(of))
    for label in np.unique(of):
        members = rng.permutation(np.flatnonzero(of == label))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(rank, kind="stable")
    parts: dict[Split, NDArray[np.int64]] = {
        "test": order[:test],
        "val": order[test : test + val],
        "train": order[test + val :],
    }
    return {name: sorted(part.tolist()) for name, part in parts.items()}


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a fraction between 0 and 1, both excluded, got {value}")


def to_tensor(image: Image.Image, channels: int, size: int | None) -> Tensor:
    """Return a PIL image as float (channels, H, W) in [0, 1].

    Args:
        image: of any mode; 16-bit grey is scaled, transparency dropped.
        channels: 1 or 3.
        size: the shorter side is resized to it and the centre cropped, or None to keep the image as it is.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    array = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    return torch.from_numpy(array).permute(2, 0, 1).float().div(255)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder and below it, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES and path.is_file()]


class FileDataset(Dataset[tuple[Tensor, int]]):
    """Image files, read when asked for.

    Args:
        paths: of the images.
        labels: one per path.
        size: side to resize and crop to.
        channels: 1 or 3.
        name: of the argument that an unreadable file is reported as.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], size: int, channels: int, *, name: str = "root"
    ) -> None:
        self.paths, self.labels, self.size, self.channels, self.name = list(paths), list(labels), size, channels, name

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            with Image.open(self.paths[index]) as image:
                image.draft("L" if self.channels == 1 else "RGB", (2 * self.size, 2 * self.size))
                return to_tensor(ImageOps.exif_transpose(image), self.channels, self.size), self.labels[index]
        except _BROKEN as error:
            raise ValueError(f"{self.name}: expected a readable image at {self.paths[index]}, got {error}") from error


@dataclass(frozen=True)
class ImageFolder(Source):
    """Images on disk, one subfolder per class, or the same inside train/ and test/ (and optionally val/).

    Every image of a split is decoded once when the split is asked for, so that a broken file shows before training
    starts and not during it.

    Args:
        root: the folder.
        size: the shorter side is resized to it and the centre cropped.
        channels: 3 for colour, 1 for grey.
        val_fraction: share of images, or of train/ where there is no val/, that becomes "val".
        test_fraction: share of images that becomes "test" where there is no test/.
        seed: of the split.
        skip_broken: leave unreadable files out, with one warning that counts them, instead of raising ValueError.
    """

    root: str
    size: int = 64
    channels: int = 3
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: expected a positive number of pixels, got {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {self.channels}")
        check_fraction("val_fraction", self.val_fraction)
        check_fraction("test_fraction", self.test_fraction)
        if self.val_fraction + self.test_fraction >= 1:
            total = self.val_fraction + self.test_fraction
            raise ValueError(f"val_fraction and test_fraction: expected a sum below 1, got {total}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        folder = self._part("train") if self._is_split() else Path(self.root)
        if not folder.is_dir():
            raise ValueError(f"root: expected an existing folder, got {self.root}")
        names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
        if len(names) < 2:
            raise ValueError(f"root: expected at least two class folders in {folder}, got {len(names)}")
        return names

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        return self.channels, self.size, self.size

    def split(self, split: Split) -> FileDataset:
        """Return the images of one split, read from disk as they are asked for."""
        self.check_split(split)
        files = self._files(split)
        if not files:
            raise ValueError(f"root: expected images for {split!r} in {self.root}, got none")
        dataset = self._dataset(files)
        broken = list(self._broken(dataset))
        if broken:
            message = (
                f"root: {len(broken)} of {len(dataset)} images are broken, the first is {dataset.paths[broken[0]]}"
            )
            if not self.skip_broken or len(broken) == len(dataset):
                raise ValueError(f"{message}; remove them or set skip_broken")
            warnings.warn(f"{message}; skipped", stacklevel=2)
            kept = [file for i, file in enumerate(files) if i not in set(broken)]
            dataset = self._dataset(kept)
        return dataset

    def _dataset(self, files: list[tuple[Path, int]]) -> FileDataset:
        return FileDataset([path for path, _ in files], [label for _, label in files], self.size, self.channels)

    def _part(self, split: Split) -> Path:
        return Path(self.root) / split

    def _is_split(self) -> bool:
        return self._part("train").is_dir() and self._part("test").is_dir()

    def _files(self, split: Split) -> list[tuple[Path, int]]:
        if not self._is_split():
            files = self._scan(Path(self.root))
            val, test = self.val_fraction, self.test_fraction
        elif split == "test" or (split == "val" and self._part("val").is_dir()):
            return self._scan(self._part(split))
        else:
            files = self._scan(self._part("train"))
            val, test = 0.0 if self._part("val").is_dir() else self.val_fraction, 0.0
        counts = [max(1, round(len(files) * share)) if share else 0 for share in (val, test)]
        if sum(counts) >= len(files):
            raise ValueError(f"root: expected enough images to split in {self.root}, got {len(files)}")
        parts = stratified([label for _, label in files], counts[0], counts[1], self.seed)
        return [files[i] for i in parts[split]]

    def _scan(self, folder: Path) -> list[tuple[Path, int]]:
        names = self.classes
        found = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
        if not found <= set(names):
            raise ValueError(f"root: expected only classes of train/ in {folder}, got {sorted(found - set(names))}")
        return [(path, label) for label, name in enumerate(names) for path in image_files(folder / name)]

    @staticmethod
    def _broken(dataset: FileDataset) -> Iterator[int]:
        for index in range(len(dataset)):
            try:
                dataset[index]
            except ValueError:
                yield index
