"""Masks of the objects in image files: how they are found, read and resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from robustsigma.data.files import BROKEN, FileDataset
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail

_ORIENTATION = 0x0112  # EXIF's number of the tag; 5 to 8 swap the sides


class MaskedFiles(FileDataset):
    """Image files with mask files, all read when asked for.

    Args:
        paths: of the images.
        labels: one per path.
        size: side to resize and crop to, or how to.
        channels: 1 or 3.
        masks: mask of each image that has one, or a mask or None for each path.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        size: int | ResizeCrop,
        channels: int,
        masks: Mapping[Path, Path] | Sequence[Path | None],
    ) -> None:
        super().__init__(paths, labels, size, channels)
        self.mask_paths = [masks.get(path) for path in paths] if isinstance(masks, Mapping) else list(masks)

    def mask(self, index: int) -> Tensor:
        """Return float (size, size) in [0, 1], 1 where the object is; zeros for an image without a mask file."""
        path = self.mask_paths[index]
        if path is None:
            return torch.zeros(self.size, self.size)
        try:
            return read_mask(path, self.paths[index], self.fit)
        except BROKEN as error:
            expected = f"a gray image of the size of {self.paths[index]} at {path}"
            raise fail("masks", expected, error) from error


def partners(images: Sequence[Path], root: Path, masks: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the mask of each image that has one: the file of the same place and name, whatever its suffix.

    Args:
        images: files below `root`.
        root: folder of the images.
        masks: files below `folder`.
        folder: of the masks, with the same subfolders as `root`.

    Raises:
        ValueError: two masks of one name, two images that one mask would fit, or no image with a mask.
    """
    by_name: dict[Path, Path] = {}
    for mask in masks:
        first = by_name.setdefault(mask.relative_to(folder).with_suffix(""), mask)
        if first != mask:
            raise fail("masks", "one mask for an image", f"{first} and {mask}")
    taken: dict[Path, Path] = {}
    found = {}
    for image in images:
        name = image.relative_to(root).with_suffix("")
        if name in by_name:
            first = taken.setdefault(name, image)
            if first != image:
                raise fail("masks", f"one image for the mask {by_name[name]}", f"{first} and {image}")
            found[image] = by_name[name]
    if not found:
        expected = f"masks in {folder} of the same subfolders and names as the images in {root}"
        raise fail("masks", expected, f"{len(masks)} masks and none of them an image's")
    return found


def read_mask(path: Path, image: Path, size: int | ResizeCrop) -> Tensor:
    """Return a mask, resized and cropped as its image is.

    Args:
        path: of the mask, a gray image: white is marked, black is not, gray is in between.
        image: whose mask it is; both have the same width and height.
        size: the shorter side is resized to it and the center cropped, bilinear, so that edges become soft; or how to
            resize and crop, to the nearest pixel.

    Returns:
        float (size, size) in [0, 1].

    Raises:
        ValueError: colors, transparency, numbers 0 and 1 where 255 is white, or another size than the image's. Like
            an unreadable file's (`BROKEN`), it says what is wrong and not where.
    """
    with Image.open(path) as file:
        values = _grey(ImageOps.exif_transpose(file))
    with Image.open(image) as file:
        wanted = file.size[::-1] if file.getexif().get(_ORIENTATION, 1) in range(5, 9) else file.size
    if values.shape[::-1] != wanted:
        raise ValueError(f"{values.shape[1]} x {values.shape[0]} pixels instead of {wanted[0]} x {wanted[1]}")
    if isinstance(size, ResizeCrop):
        values = np.array(size.of_mask(Image.fromarray(values)))
    elif wanted != (size, size):
        values = np.array(ImageOps.fit(Image.fromarray(values), (size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(values).clamp(0, 1)


def _grey(image: Image.Image) -> NDArray[np.float32]:
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
    return array.astype(np.float32) / np.float32(white)


def area_average(values: Tensor, size: int) -> Tensor:
    """Resize a map so that each new pixel is the mean over the area that it covers; the map's mean is kept.

    Args:
        values: (H, W).
        size: new side; H and W are squeezed or stretched to it independently.

    Returns:
        float64 (size, size), within the range of `values` up to rounding.
    """
    rows, columns = (_shares(side, size) for side in values.shape)
    return rows @ values.double() @ columns.T


def _shares(side: int, size: int) -> Tensor:
    """Return (size, side): how much of each new pixel every old pixel covers."""
    # Counted in units of 1 / size of an old pixel, in which all borders are integers.
    new, old = torch.arange(size)[:, None] * side, torch.arange(side)[None] * size
    overlap = torch.minimum(new + side, old + size) - torch.maximum(new, old)
    return overlap.clamp(min=0).double() / side
