"""`RandomResizedCrop`: the usual augmentation of photographs, drawn from a seed of each image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from robustsigma.data.transforms import Albumentations
from robustsigma.engine.validation import Settings, fail, number, optional

_ATTEMPTS = 10


class CropBox(NamedTuple):
    """A part of an image in pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool


@dataclass(frozen=True)
class RandomResizedCrop(Settings):
    """Crop a random part of the full image and resize it to the size of the dataset's images.

    It draws as torchvision's transform of this name (Szegedy et al., 2015), but from the seed of each image, so that
    batches, workers and their order change nothing. Of image files the crop is cut from the whole decoded file, before
    anything is resized; of images in memory from the image as it is there.

    Args:
        scale: smallest and largest area of the crop, as a fraction of the image's.
        ratio: smallest and largest ratio of the crop's width to its height.
        flip: probability that the crop is mirrored.
        interpolation: "nearest", "bilinear" or "bicubic"; the last two antialias.
        then: further transforms of the resized crop, or None.

    Example:
        >>> data = RobustDataModule(ImageFolder("photos", size=224), augment=RandomResizedCrop(scale=(0.35, 1)))
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    then: Albumentations | None = None

    def __post_init__(self) -> None:
        for name, most in (("scale", 1.0), ("ratio", math.inf)):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2 or number(name, pair[0], 0, most) > pair[1]:
                raise fail(name, "two numbers, the smaller one first", repr(pair)[:80])
            for each in pair:
                number(name, each, 0, most, open_low=True)
        number("flip", self.flip, 0, 1)
        optional("then", self.then, Albumentations)

    def box(self, width: int, height: int, seed: int) -> CropBox:
        """Return the crop of an image of some pixels; the largest central one of a fitting ratio if ten draws fail."""
        rng = np.random.default_rng(seed % 2**64)
        low, high = map(math.log, self.ratio)
        flipped = bool(rng.random() < self.flip)
        for _ in range(_ATTEMPTS):
            area, ratio = width * height * rng.uniform(*self.scale), math.exp(rng.uniform(low, high))
            across, along = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < along <= height:
                left, top = (int(rng.integers(0, most + 1)) for most in (width - across, height - along))
                return CropBox(left, top, across, along, flipped)
        across = min(width, max(1, round(height * self.ratio[1])))
        along = min(height, max(1, round(width / self.ratio[0])))
        return CropBox((width - across) // 2, (height - along) // 2, across, along, flipped)

    def of_image(self, image: Image.Image, size: int, seed: int) -> Image.Image:
        """Return the crop of a PIL image, resized to (size, size), in its mode."""
        left, top, width, height, flipped = self.box(*image.size, seed)
        crop = image.crop((left, top, left + width, top + height))  # resize(box=…) would mix in pixels beside it
        crop = crop.resize((size, size), Image.Resampling[self.interpolation.upper()])
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else crop

    def of_tensor(self, image: Tensor, seed: int) -> Tensor:
        """Return the crop of an image (C, H, W), uint8 or float in [0, 1], resized to its own size."""
        from torchvision.transforms.v2.functional import InterpolationMode, resized_crop  # here, as it takes a second

        *_, height, width = image.shape
        left, top, across, along, flipped = self.box(width, height, seed)
        mode = InterpolationMode[self.interpolation.upper()]
        crop: Tensor = resized_crop(image, top, left, along, across, [height, width], mode)
        crop = crop.clamp(0, 1) if crop.is_floating_point() else crop
        return crop.flip(-1) if flipped else crop
