"""`overlay`: an attribution over its image, drawn alike by `explain`, reports, `AttributionMonitor` and in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robustsigma.engine.attributors import Attribution
from robustsigma.engine.validation import boolean, choice, fail, integer, number

Colors = Literal["inferno", "viridis", "cividis"]
Floats = NDArray[np.float64]
_HALF, _TOP = 50.0, 99.5
# Every 16th color of matplotlib's maps (CC0), whose lightness rises evenly: in hexadecimal, from low to high.
_TABLES = {
    "inferno": "0000040b0724210c4a3c096557106d70196e89226aa32b61bb3755d14644e35932f1711ef98d0afcab0ff9ca32f2e865fcffa4",
    "viridis": "44015448186a472d7b4240863b528b33638d2c728e26818e21908c1f9f8828ae803ebc745dc96382d34cabdc32d5e21afde725",
    "cividis": "00224e002e6a1a386f32436d434e6c52596d61656f6f70737c7b788b87789b9376aba072bbad6cccba64ddc958efd748fee838",
}
_FOR, _AGAINST = (226, 98, 14), (74, 117, 235)  # of equal lightness (OKLab L = .62)
_EDGE = (0, 229, 255)  # in no map, so that outlines stand out
_ALPHA = 0.85  # exponent from level to opacity
_DARKEST, _LIGHTEST = {False: 25, True: 80}, 215  # of the gray image: colors show on black and on white
_SMALL = 64  # images up to this side are enlarged in whole pixels


def overlay(
    image: Any,
    attribution: Attribution | Any,
    *,
    smooth: float | None = None,
    clip: tuple[float, float] = (_HALF, _TOP),
    opacity: float = 0.85,
    colors: Colors = "inferno",
    signed: bool = False,
    outline: float | None = None,
    side: int | None = None,
) -> Image.Image:
    """Draw an attribution over its image in gray.

    The heatmap is the sum of |values| over channels, as `Attribution.heatmap()` gives it, smoothed and clipped. Use the
    values themselves for numbers: a picture leaves out what lies below the first percentile.

    Args:
        image: (C, H, W) of 1 or 3 channels, in [0, 1] or uint8, or (B, C, H, W), which are drawn side by side.
        attribution: result of an attribution method for these images, its values (..., C, H, W), or maps (..., H, W).
        smooth: standard deviation of a Gaussian in pixels of the image, which smooths the heatmap; None is a fiftieth
            of the shorter side, 0 is none.
        clip: percentiles of the heatmap that are drawn as nothing and as the strongest color.
        opacity: opacity of the strongest color, in [0, 1].
        colors: color map, from low to high.
        signed: whether to draw the sum of the values over channels: orange speaks for the class, blue against it. Signs
            of single pixels mostly alternate, so regions show less well.
        outline: percentage of the pixels, those with the highest values, that is outlined; None is no outline.
        side: length of the shorter side of each image in the picture; None is that of the image.

    Returns:
        An RGB picture of PIL; `numpy.asarray` makes it a uint8 array (H, W, 3).

    Raises:
        ValueError: an argument outside what is stated here.

    Example:
        >>> result = IntegratedGradients()(classifier, images)
        >>> overlay(images, result, outline=10).save("maps.png")
    """
    pixels, values = _arrays(image, attribution)
    opacity, signed = number("opacity", opacity, 0, 1), boolean("signed", signed)
    choice("colors", colors, get_args(Colors))
    side = min(pixels.shape[2:]) if side is None else integer("side", side, 1)
    if outline is not None:
        number("outline", outline, 0, 100, open_low=True)
    drawn = []
    for each, its in zip(pixels, values, strict=True):
        level = _enlarged(levels(its, smooth=smooth, clip=clip, signed=signed), side)
        gray = np.asarray(picture_of(each, side).convert("L"), np.float64)[..., None]
        shade, alpha = _shade(level, colors, signed)
        alpha *= opacity
        found = (1 - alpha) * (_DARKEST[signed] + (_LIGHTEST - _DARKEST[signed]) * gray / 255) + alpha * shade
        if outline is not None:
            size = np.abs(level)
            draw_outline(found, (size >= np.percentile(size, 100 - outline)) & (size > 0))
        drawn.append(found.round().astype(np.uint8))
    return Image.fromarray(np.concatenate(drawn, axis=1))


def levels(values: Floats, *, smooth: float | None = None, clip: Any = (_HALF, _TOP), signed: bool = False) -> Floats:
    """Return what is drawn of values (C, H, W): a map (H, W) in [-1, 1], or [0, 1] if not `signed`."""
    smooth = min(values.shape[1:]) / 50 if smooth is None else number("smooth", smooth, 0)
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise fail("clip", "two percentiles, as in (50, 99.5)", repr(clip)[:80])
    low, high = number("clip[0]", clip[0], 0, 100), number("clip[1]", clip[1], 0, 100)
    if low >= high:
        raise fail("clip", "a lower percentile first", f"{low} and {high}")
    from scipy.ndimage import gaussian_filter  # here, as help should not wait for it

    heat = gaussian_filter(values.sum(0) if signed else np.abs(values).sum(0), smooth)
    size = np.abs(heat)
    bottom, top = np.percentile(size, (low, high))
    top = top if top > bottom else size.max()  # of a map with a few pixels
    if top <= bottom * (1 + 1e-9):  # a constant map shows nothing
        return np.zeros_like(heat)
    level: Floats = np.clip((size - bottom) / (top - bottom), 0, 1)
    return level * np.sign(heat) if signed else level


def picture_of(image: Floats, side: int) -> Image.Image:
    """Return an image (C, H, W) in [0, 1] as an RGB picture whose shorter side has a given length."""
    bands = (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
    bands = bands if len(bands) == 3 else np.repeat(bands[:1], 3, 0)
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(bands, 0, -1)))
    return _resized(picture, side)


def draw_outline(picture: Floats, inside: NDArray[np.bool_], color: tuple[int, int, int] = _EDGE) -> None:
    """Draw a line around a region (H, W) into a picture (H, W, 3) with values in [0, 255]."""
    from scipy.ndimage import binary_dilation, binary_erosion

    width = max(1, min(inside.shape) // 150)
    picture[binary_dilation(inside, iterations=width) & ~inside] = 0
    picture[inside & ~binary_erosion(inside, iterations=width)] = color


def side_of(shape: Sequence[int], least: int) -> int:
    """Return a side of at least so many pixels for images (H, W): a whole multiple, so that small ones stay sharp."""
    return min(shape) * max(1, -(-least // min(shape)))


def color_bar(width: int, height: int, *, colors: Colors = "inferno", signed: bool = False, **_: Any) -> Image.Image:
    """Return the colors of an overlay, the strongest on top."""
    ramp = np.linspace(1, -1 if signed else 0, height)[:, None].repeat(width, 1)
    shade, alpha = _shade(ramp, colors, signed)
    return Image.fromarray(((1 - alpha) * 190 + alpha * shade).round().astype(np.uint8))


def _arrays(image: Any, attribution: Any) -> tuple[Floats, Floats]:
    """Return images (B, C, H, W) and values of the same batch and size, as numbers of double precision."""
    given = attribution.values if isinstance(attribution, Attribution) else attribution
    pixels, values = _plain(image), _plain(given)
    if str(getattr(image, "dtype", "")).removeprefix("torch.") == "uint8":
        pixels = pixels / 255
    single = pixels.ndim == 3
    pixels = pixels[None] if single else pixels
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise fail("image", "shape (C, H, W) or (B, C, H, W) of 1 or 3 channels", f"shape {np.shape(image)}")
    values = values[None] if single and not isinstance(attribution, Attribution) else values
    values = values[:, None] if values.ndim == 3 else values
    expected = (len(pixels), *pixels.shape[2:])
    if values.ndim != 4 or (len(values), *values.shape[2:]) != expected:
        got = f"shape {tuple(given.shape if hasattr(given, 'shape') else np.shape(given))}"
        raise fail("attribution", f"values or maps of {expected[0]} image(s) of {expected[1]} x {expected[2]}", got)
    for name, found in (("image", pixels), ("attribution", values)):
        if not np.isfinite(found).all():
            raise fail(name, "finite numbers", "NaN or infinity")
    if pixels.min() < -1e-6 or pixels.max() > 1 + 1e-6:
        raise fail("image", "pixels in [0, 1], or uint8", f"[{pixels.min():.3g}, {pixels.max():.3g}]")
    return pixels, values


def _plain(value: Any) -> Floats:
    return np.asarray(value.detach().double().cpu() if isinstance(value, Tensor) else value, np.float64)


def _resized(picture: Image.Image, side: int) -> Image.Image:
    least = min(picture.size)
    how = Image.Resampling.NEAREST if least <= _SMALL else Image.Resampling.BICUBIC
    width, height = (round(each * side / least) for each in picture.size)
    return picture.resize((width, height), how)


def _enlarged(level: Floats, side: int) -> Floats:
    return np.clip(np.asarray(_resized(Image.fromarray(level.astype(np.float32)), side), np.float64), -1, 1)


def _shade(level: Floats, colors: Colors, signed: bool) -> tuple[Floats, Floats]:
    """Return the colors (H, W, 3) in [0, 255] of levels (H, W), and how much of them is seen, (H, W, 1) in [0, 1]."""
    size = np.abs(level)
    if signed:
        shade = np.where(level[..., None] >= 0, _FOR, _AGAINST).astype(np.float64)
    else:
        table = np.frombuffer(bytes.fromhex(_TABLES[colors]), np.uint8).reshape(-1, 3)
        shade = np.stack([np.interp(size, np.linspace(0, 1, len(table)), band) for band in table.T], -1)
    return shade, size[..., None] ** _ALPHA
