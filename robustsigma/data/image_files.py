"""Image files and masks of the objects in them: how they are decoded and resized, and a dataset that reads them."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from robustsigma.data.csv_tables import Annotation
from robustsigma.data.dataset_spec import PixelDataset
from robustsigma.data.random_resized_crop import RandomResizedCrop
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail, warn
from robustsigma.runs import fingerprint

# What Pillow raises for a file that it cannot decode.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_VERIFIED_AT_ONCE = 4096
_FINGERPRINTED = 256  # files whose content a fingerprint knows, evenly spaced
_TWELVE_BITS = 4096
_LOSSY = ("JPEG", "MPO", "WEBP")
_ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 swap the sides


Resize = int | ResizeCrop  # an int: the shorter side is resized to it and the center cropped


class ImageRow(NamedTuple):
    """One image of a dataset.

    Attributes:
        path: image file.
        labels: all correct labels; the first is the label.
        mask: gray mask file or annotation of the object that decides the label, or None if it is unannotated.
    """

    path: str
    labels: tuple[int, ...] = (0,)
    mask: str | Annotation | None = None


def is_gray(mode: str) -> bool:
    """Return whether a mode of PIL has one channel of brightness, such as "L" or "I;16"."""
    return mode in ("1", "L", "LA", "La") or mode.startswith("I")


def to_bytes(image: Image.Image, channels: int, resize: Resize | Callable[[Image.Image], Image.Image] | None) -> Tensor:
    """Return a PIL image of any mode as uint8 (channels, H, W), resized by a size, a `ResizeCrop` or a function.

    16-bit gray is scaled, with a warning where it has 12 bits at most; transparency is dropped. ValueError: pixels that
    are fractions, or have more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("numbers with fractions, of which no file says whether 1 or 255 is white")
    if image.mode.startswith("I"):  # 16 bits, even if the format's reader says 32
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("numbers of more than 16 bits")
        if 0 < values.max() < _TWELVE_BITS:
            got = f"one whose numbers are all below {_TWELVE_BITS}, which is nearly black"
            hint = "multiply the numbers of 12-bit images by 16 before you save them"
            # The same text for all, so that Python shows it once.
            warn(f"images: expected 16-bit images whose white is 65535, got {got}; {hint}")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("L" if channels == 1 else "RGB")
    if isinstance(resize, ResizeCrop):
        image = resize.apply(image)
    elif isinstance(resize, int):
        image = _bilinear(image, resize)
    elif resize is not None:
        image = resize(image)
    array = np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    return torch.from_numpy(array).permute(2, 0, 1)


def _bilinear(image: Image.Image, side: int) -> Image.Image:
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)


def read_mask(path: str | Path, image: str | Path, resize: int | ResizeCrop) -> Tensor:
    """Return a gray mask, white where it is marked, resized and cropped as its image is: float (size, size) in [0, 1].

    An int resizes bilinearly, so that edges become soft; a `ResizeCrop` takes the nearest pixel. Its errors (`BROKEN`)
    do not name the file.
    """
    with Image.open(path) as file:
        values = _gray(ImageOps.exif_transpose(file), lossy=file.format in _LOSSY)
    with Image.open(image) as file:
        width, height = file.size[::-1] if file.getexif().get(_ORIENTATION, 1) in range(5, 9) else file.size
    if values.shape != (height, width):
        raise ValueError(f"{values.shape[1]} x {values.shape[0]} pixels instead of {width} x {height}")
    mask = Image.fromarray(values)
    resized = resize.of_mask(mask) if isinstance(resize, ResizeCrop) else _bilinear(mask, resize)
    return torch.from_numpy(np.array(resized)).clamp(0, 1)


def _gray(image: Image.Image, lossy: bool) -> NDArray[np.float32]:
    """Return float (H, W), 1 where the image is white."""
    white = 65535 if image.mode.startswith("I") else 255
    array = np.asarray(image if white == 65535 else image.convert("RGBA"))
    if array.ndim == 3:
        if array[..., 3].min() < 255:
            raise ValueError("transparency")
        if (array[..., :3] != array[..., :1]).any():
            raise ValueError("colors")
        array = array[..., 0]
    if array.max() == 1:
        raise ValueError(f"the numbers 0 and 1 only; {white} is white")
    if not lossy and looks_like_classes(array, white):  # compression makes flat areas of nearly black and white
        shown = ", ".join(map(str, np.unique(array)[:6]))
        raise ValueError(f"numbers such as {shown}, which look like classes; save 0 and {white} for one of them")
    return array.astype(np.float32) / np.float32(white)


def looks_like_classes(mask: NDArray[Any], white: int) -> bool:
    """Return whether numbers (H, W) are indices of classes, rather than 0, `white` and the grays of soft edges.

    A mask has a number of at least half of `white`, and most of its grays differ from the pixel above or the one to
    the left, while classes have areas of one number.
    """
    between = (mask > 0) & (mask < white)
    inner = mask[1:, 1:]
    flat = between[1:, 1:] & (inner == mask[:-1, 1:]) & (inner == mask[1:, :-1])
    return bool(between.any() and (mask.max() < white // 2 or 2 * flat.sum() >= between.sum()))


def area_average(values: Tensor, size: int) -> Tensor:
    """Resize a map (H, W) to float64 (size, size): each new pixel is the mean over the area that it covers."""
    rows, columns = (_overlap(side, size) for side in values.shape)
    return rows @ values.double() @ columns.T


def _overlap(side: int, size: int) -> Tensor:
    """Return (size, side): the fraction of each new pixel that each old pixel covers."""
    # In units of 1 / size of an old pixel, all borders are integers.
    new, old = torch.arange(size)[:, None] * side, torch.arange(side)[None] * size
    overlap = torch.minimum(new + side, old + size) - torch.maximum(new, old)
    return overlap.clamp(min=0).double() / side


class Rows(Sequence[ImageRow]):
    """Rows in a few arrays.

    Loading processes share the memory of the process that started them until they touch a Python object, which a
    list of 1.3 million rows consists of: each process would have its own copy in the end.
    """

    def __init__(self, rows: Iterable[ImageRow]) -> None:
        paths, labels = [], []
        self._labels: dict[int, tuple[int, ...]] = {}  # of images with several
        self.masks: dict[int, str | Annotation] = {}
        for place, (path, each, mask) in enumerate(rows):
            paths.append(os.fsencode(path))
            labels.append(each[0])
            if len(each) > 1:
                self._labels[place] = each
            if mask is not None:
                self.masks[place] = mask
        self._paths, self._ends = b"".join(paths), np.cumsum([0, *map(len, paths)])
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        place = range(len(self))[index]
        if isinstance(place, range):
            return [self[each] for each in place]
        path = os.fsdecode(self._paths[self._ends[place] : self._ends[place + 1]])
        return ImageRow(path, self._labels.get(place, (int(self.labels[place]),)), self.masks.get(place))


class FileDataset(PixelDataset):
    """Image files, read when an item is asked for. Items are (float (channels, size, size) in [0, 1], int label).

    Args:
        rows: the images.
        resize: how to resize and crop.
        channels: 1 or 3.
        name: argument that the error of an unreadable file names.
        upright: whether to turn images as their EXIF orientation says.

    Example:
        >>> FileDataset([ImageRow("ant.png")], 64, channels=3)[0][0].shape
        torch.Size([3, 64, 64])
    """

    def __init__(
        self, rows: Iterable[ImageRow], resize: Resize, channels: int, *, name: str = "root", upright: bool = True
    ) -> None:
        self.rows = rows if isinstance(rows, Rows) else Rows(rows)
        self.resize, self.channels, self.name, self.upright = resize, channels, name, upright
        self.size = resize if isinstance(resize, int) else resize.size

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, crop: RandomResizedCrop | None = None, seed: int = 0) -> tuple[Tensor, int]:
        """Return an image as uint8 (channels, size, size), or a random crop of the full image, and its label."""
        path, labels, _ = self.rows[index]
        try:
            with Image.open(path) as image:
                return self._decode(image, crop, seed), labels[0]
        except BROKEN as error:
            hint = "; robustsigma doctor --data FOLDER lists all such files"
            hint += ", and skip_broken=True (skip_broken: true) leaves them out" * (self.name == "root")
            raise fail(self.name, f"a readable image at {path}", f"{error}{hint}") from error

    def _decode(self, image: Image.Image, crop: RandomResizedCrop | None, seed: int) -> Tensor:
        mode = "L" if self.channels == 1 else "RGB"
        if crop is not None:
            return to_bytes(self._turned(image), self.channels, lambda full: crop.of_image(full, self.size, seed))
        if isinstance(self.resize, int):  # decodes JPEG at a smaller scale, which a network's own resizing must not
            image.draft(mode, (2 * self.size, 2 * self.size))
        return to_bytes(self._turned(image), self.channels, self.resize)

    def _turned(self, image: Image.Image) -> Image.Image:
        return ImageOps.exif_transpose(image) if self.upright else image

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the images and labels, in plain JSON types, without decoding an image."""
        found = fingerprint_of_files([row.path for row in self.rows])
        labels = hashlib.sha256(repr([row.labels for row in self.rows]).encode()).hexdigest()
        return {**found, "labels": labels, "resize": str(self.resize), "channels": self.channels}

    @property
    def paths(self) -> list[Path]:
        """Files of the images."""
        return [Path(row.path) for row in self.rows]

    @property
    def labels(self) -> list[int]:
        """Labels of the images."""
        found: list[int] = self.rows.labels.tolist()
        return found

    def correct_labels(self, index: int) -> tuple[int, ...]:
        """Return every label that is correct for an image; the first is its label."""
        return self.rows[index].labels

    def find_broken(self) -> dict[int, str]:
        """Decode all images in threads, and return why some are unreadable, by index."""
        return _errors(self.read, len(self))


class MaskedFileDataset(FileDataset):
    """A `FileDataset` whose rows may have masks, which are read when asked for."""

    def mask(self, index: int) -> Tensor:
        """Return float (size, size) in [0, 1], 1 on the marked object; zeros for an unannotated image."""
        path, _, mask = self.rows[index]
        if mask is None:
            return torch.zeros(self.size, self.size)
        if isinstance(mask, Annotation):
            return area_average(mask.numbers(), self.size).float().clamp(0, 1)
        try:
            return read_mask(mask, path, self.resize)
        except BROKEN as error:
            raise fail("masks", f"a gray image of the size of {path} at {mask}", error) from error

    def find_broken_masks(self) -> dict[str, str]:
        """Return why some masks are unreadable, by file."""
        return {str(self.rows[index].mask): why for index, why in _errors(self.mask, len(self)).items()}


def fingerprint_of_files(paths: Sequence[str]) -> dict[str, Any]:
    """Return the number of files and hashes of their paths and sizes, and of the content of up to 256, as JSON types.

    No image is decoded. Paths count below their common folder. The time of a change does not count: copies of a folder,
    such as those on the disks of several nodes, are the same data.
    """
    found = sorted(paths)
    root = os.path.commonpath([found[0], found[-1]])  # that of all, as they are sorted
    names = hashlib.sha256()
    for path in found:
        names.update(f"{path[len(root) :]}\0{_size(path)}\n".encode(errors="surrogateescape"))
    places = sorted({*np.linspace(0, len(found) - 1, min(len(found), _FINGERPRINTED)).round().astype(int).tolist()})
    content = fingerprint.files([Path(found[place]) for place in places], Path(root).parent)["content"]
    return {"count": len(found), "names": names.hexdigest(), "content": content}


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116  # a Path takes longer than the call
    except OSError:  # a missing file is for the reader to report
        return None


def _errors(read: Callable[[int], Any], count: int) -> dict[int, str]:
    def error(index: int) -> str | None:
        try:
            read(index)
        except ValueError as found:
            return str(found.__cause__ or found)
        return None

    with ThreadPoolExecutor() as pool:  # which would hold a task for each file at once
        blocks = (range(start, min(start + _VERIFIED_AT_ONCE, count)) for start in range(0, count, _VERIFIED_AT_ONCE))
        whys = (why for block in blocks for why in pool.map(error, block))
        return {index: why for index, why in enumerate(whys) if why is not None}


def without_broken(dataset: FileDataset) -> FileDataset:
    """Return a dataset without its unreadable images, which one warning counts, or raise if no image is readable."""
    rows, broken = dataset.rows, dataset.find_broken()
    if broken:
        message = (
            f"{dataset.name}: {len(broken)} of {len(rows)} images are broken, the first is {rows[min(broken)].path}"
        )
        if len(broken) == len(rows):
            raise ValueError(message)
        dataset.rows = Rows([row for index, row in enumerate(rows) if index not in broken])
        lost = sorted({rows[index].labels[0] for index in broken} - set(dataset.labels))
        warn(f"{message}; skipped{f', so that no image is left of class {lost[0]}' if lost else ''}")
    return dataset
