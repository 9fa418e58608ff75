"""Image files: how they are found, decoded and resized."""

from __future__ import annotations

import os
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.resize_crop import ResizeCrop

# Formats that Pillow recognizes but does not decode, or only through another program.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Windows, macOS and network drives put these beside images, some with copies of them.
_OF_SYSTEMS = {"$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found", "thumbs.db"}
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def to_tensor(image: Image.Image, channels: int, size: int | ResizeCrop | None, *, squeeze: bool = False) -> Tensor:
    """Return a PIL image as float (channels, H, W) in [0, 1].

    Args:
        image: of any mode; 16-bit gray is scaled, transparency dropped.
        channels: 1 or 3.
        size: the shorter side is resized to it and the center cropped, or None to keep the image as it is; or how
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
    if isinstance(size, ResizeCrop):
        image = size.apply(image)
    elif size is not None and image.size != (size, size):
        resize = Image.Image.resize if squeeze else ImageOps.fit
        image = resize(image, (size, size), Image.Resampling.BILINEAR)
    array = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    return torch.from_numpy(array).permute(2, 0, 1).float().div(255)


class Found(NamedTuple):
    """What a folder and its subfolders hold.

    Attributes:
        images: files with the suffix of an image that Pillow can read.
        others: all other visible files.
    """

    images: list[Path]
    others: list[Path]


def image_suffixes() -> set[str]:
    """Return the lowercase suffixes of images that Pillow can read, with those of its plugins, such as ".png"."""
    known = Image.registered_extensions().items()
    return {suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NOT_DECODED}


def is_visible(name: str) -> bool:
    """Return whether a file or folder is not hidden, and not one that an operating system writes beside images."""
    return not name.startswith(".") and name.lower() not in _OF_SYSTEMS


def subfolders(folder: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted, with links to folders and broken links."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if is_visible(entry.name)]
    return sorted(entry.name for entry in visible if entry.is_dir() or _is_broken(folder / entry.name))


def _is_broken(path: Path) -> bool:
    return not path.suffix and path.is_symlink() and not path.exists()


def scan(folder: Path) -> Found:
    """Return the visible files in a folder and its subfolders, sorted. Links are followed."""
    suffixes = image_suffixes()
    found = Found([], [])
    for path in _walk(folder, ()):
        (found.images if path.suffix.lower() in suffixes else found.others).append(path)
    return found


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    here = folder.resolve()
    if here in above or not folder.is_dir():  # a link to a folder that it lies in would never end
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if is_visible(entry.name)), key=lambda entry: entry.name)
    for entry in visible:
        path = folder / entry.name
        if entry.is_dir():
            yield from _walk(path, (*above, here))
        elif entry.is_file() or not path.exists():  # a broken link is reported when it is read
            yield path


def count_by_suffix(paths: Sequence[Path], root: Path) -> str:
    """Return how many files of each suffix each folder holds, such as "3 .heic files (2 in cat, 1 in dog)"."""
    by_suffix: dict[str, Counter[str]] = {}
    for path in paths:
        folder = "the folder itself" if path.parent == root else path.parent.relative_to(root).as_posix()
        by_suffix.setdefault(path.suffix.lower(), Counter())[folder] += 1
    told = []
    for suffix, folders in sorted(by_suffix.items()):
        total = folders.total()
        files = f"{total} {suffix or 'suffixless'} file{'s' if total > 1 else ''}"
        told.append(f"{files} ({shorten([f'{count} in {folder}' for folder, count in folders.items()])})")
    return shorten(told, 8)


def shorten(items: Sequence[str], most: int = 5) -> str:
    """Return items separated by commas, the first ones if there are many."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


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
        self, paths: Sequence[Path], labels: Sequence[int], size: int | ResizeCrop, channels: int, *, name: str = "root"
    ) -> None:
        self.paths, self.labels, self.channels, self.name = list(paths), list(labels), channels, name
        self.fit = size
        self.size = size.size if isinstance(size, ResizeCrop) else size

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
        if not isinstance(self.fit, ResizeCrop):  # a network's accuracy is of what its own resizing gives, to the bit
            image.draft("L" if self.channels == 1 else "RGB", (2 * self.size, 2 * self.size))
        return to_tensor(ImageOps.exif_transpose(image), self.channels, self.fit)


Files = list[tuple[Path, int]]
D = TypeVar("D", bound=FileDataset)
F = TypeVar("F")


def verify_images(files: Sequence[F], make: Callable[[list[F]], D], skip_broken: bool) -> D:
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
        whole = make([file for i, file in enumerate(files) if i not in set(broken)])
        lost = {dataset.labels[i]: dataset.paths[i] for i in broken if dataset.labels[i] not in set(whole.labels)}
        gone = shorten([f"class {label} (such as {path})" for label, path in lost.items()], 3)
        warnings.warn(f"{message}; skipped{f', so that no image is left of {gone}' if lost else ''}", stacklevel=3)
        dataset = whole
    return dataset


def _decodes(dataset: FileDataset, index: int) -> bool:
    try:
        dataset[index]
    except ValueError:
        return False
    return True
