"""Image files: how they are found, decoded and resized."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.geometry import Geometry

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def to_tensor(image: Image.Image, channels: int, size: int | Geometry | None, *, squeeze: bool = False) -> Tensor:
    """Return a PIL image as float (channels, H, W) in [0, 1].

    Args:
        image: of any mode; 16-bit grey is scaled, transparency dropped.
        channels: 1 or 3.
        size: the shorter side is resized to it and the centre cropped, or None to keep the image as it is; or how
            to resize and crop.
        squeeze: both sides are resized to `size` instead, whatever their ratio, and nothing is cropped.

    Raises:
        ValueError: numbers with fractions, or of more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("numbers with fractions, of which no file says whether 1 or 255 is white")
    if image.mode.startswith("I"):  # of 16 bits, also where the format's reader says 32
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("numbers of more than 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    if isinstance(size, Geometry):
        image = size.apply(image)
    elif size is not None and image.size != (size, size):
        resize = Image.Image.resize if squeeze else ImageOps.fit
        image = resize(image, (size, size), Image.Resampling.BILINEAR)
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
        size: side to resize and crop to, or how to.
        channels: 1 or 3.
        name: of the argument that an unreadable file is reported as.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], size: int | Geometry, channels: int, *, name: str = "root"
    ) -> None:
        self.paths, self.labels, self.channels, self.name = list(paths), list(labels), channels, name
        self.fit = size
        self.size = size.size if isinstance(size, Geometry) else size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            with Image.open(self.paths[index]) as image:
                return self.tensor(image), self.labels[index]
        except BROKEN as error:
            raise ValueError(f"{self.name}: expected a readable image at {self.paths[index]}, got {error}") from error

    def tensor(self, image: Image.Image) -> Tensor:
        """Return an opened image as float (channels, size, size) in [0, 1]."""
        if not isinstance(self.fit, Geometry):  # a network's accuracy is of what its own resizing gives, to the bit
            image.draft("L" if self.channels == 1 else "RGB", (2 * self.size, 2 * self.size))
        return to_tensor(ImageOps.exif_transpose(image), self.channels, self.fit)


Files = list[tuple[Path, int]]
D = TypeVar("D", bound=FileDataset)
F = TypeVar("F")


def readable(files: Sequence[F], make: Callable[[list[F]], D], skip_broken: bool) -> D:
    """Return a dataset whose images have all been decoded once.

    Args:
        files: image files and their labels, as `make` takes them.
        make: the dataset of some of them.
        skip_broken: leave unreadable images out, with one warning that counts them.

    Raises:
        ValueError: an unreadable image without `skip_broken`, or nothing but unreadable images.
    """
    dataset = make(list(files))
    broken = [index for index in range(len(dataset)) if not _decodes(dataset, index)]
    if broken:
        message = f"root: {len(broken)} of {len(dataset)} images are broken, the first is {dataset.paths[broken[0]]}"
        if not skip_broken or len(broken) == len(dataset):
            raise ValueError(f"{message}; remove them or set skip_broken")
        warnings.warn(f"{message}; skipped", stacklevel=3)
        dataset = make([file for i, file in enumerate(files) if i not in set(broken)])
    return dataset


def _decodes(dataset: FileDataset, index: int) -> bool:
    try:
        dataset[index]
    except ValueError:
        return False
    return True
