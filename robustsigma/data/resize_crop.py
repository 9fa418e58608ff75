"""Resize an image and crop its center, as networks of photographs need it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from robustsigma.engine.validation import Settings, fail, integer

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_MAX_PIXELS = 2**26  # of the resized image


@dataclass(frozen=True)
class ResizeCrop(Settings):
    """Resize and crop, as torchvision's `Resize(resize)` and `CenterCrop(size)` do to PIL images.

    Args:
        size: side of the square that is cropped from the center, in pixels.
        resize: length of the resized shorter side, at least `size`; None is `size`.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos"; all but "nearest" antialias.
        squeeze: resize both sides to `resize`, whatever their ratio, instead of the shorter one.

    Example:
        >>> ResizeCrop(size=224, resize=256).apply(Image.open("photo.jpg")).size
        (224, 224)
    """

    size: int = 224
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    squeeze: bool = False

    def __post_init__(self) -> None:
        integer("geometry.size", self.size, 1)
        if self.resize is not None:
            integer("geometry.resize", self.resize, 1)
            if self.resize < self.size:
                raise fail("geometry.resize", f"at least the size of the crop, {self.size}", self.resize)
            if self.resize == self.size:  # so that equal geometries compare equal
                object.__setattr__(self, "resize", None)

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the crop of a PIL image, in its mode."""
        filter_, short = Image.Resampling[self.interpolation.upper()], self.resize or self.size
        width, height = image.size
        new = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        new = (short, short) if self.squeeze else new
        left, top = (round((side - self.size) / 2) for side in new)
        if new[0] * new[1] > _MAX_PIXELS:  # such as a strip of 20,000 x 1 pixels: resize its crop only
            across, along = width / new[0], height / new[1]
            box = (left * across, top * along, (left + self.size) * across, (top + self.size) * along)
            return image.resize((self.size, self.size), filter_, box)
        if new != image.size:
            image = image.resize(new, filter_)
        return image.crop((left, top, left + self.size, top + self.size))

    def of_mask(self, mask: Image.Image) -> Image.Image:
        """Return the crop of a mask at the same place as that of its image; values are not mixed."""
        return replace(self, interpolation="nearest").apply(mask)

    def __str__(self) -> str:
        how = f"{self.interpolation}{', both sides' if self.squeeze else ''}"
        return f"{self.size} pixels of {self.resize or self.size} ({how})"
