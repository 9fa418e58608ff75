"""Common corruptions after Hendrycks and Dietterich (2019), as Albumentations 2.0.8 can draw them.

Of their 15 + 4 families `snow` and `frost` are missing: Albumentations' snow bleaches dark pixels or turns the hue
instead of drawing flakes, and frost needs photographs. The strengths are this package's own, near those of CIFAR-10-C
where the transform is the same. Lengths are in pixels of a 32-pixel image and grow with larger ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Arguments = dict[str, Any]
Family = tuple[str, Callable[[int, float], Arguments]]
"""Name of the Albumentations transform, and its arguments from (severity - 1, image side / 32)."""


def _odd(length: float) -> int:
    return 2 * round((length - 1) / 2) + 1


def _both(value: float) -> tuple[float, float]:
    """Return the range of one number: the transforms draw their strength, here it is set."""
    return (value, value)


def _pixels(length: float, scale: float) -> int:
    return max(1, round(length * max(1.0, scale)))


_INTER_AREA, _BORDER_REFLECT = 3, 4  # OpenCV's numbers

FAMILIES: dict[str, Family] = {
    "gaussian_noise": (
        "GaussNoise",
        lambda i, _: {"std_range": _both((0.04, 0.06, 0.08, 0.10, 0.13)[i])},
    ),
    "shot_noise": (
        "ShotNoise",
        lambda i, _: {"scale_range": _both((0.002, 0.004, 0.010, 0.015, 0.025)[i])},
    ),
    "impulse_noise": (
        "SaltAndPepper",
        lambda i, _: {"amount": _both((0.02, 0.035, 0.05, 0.07, 0.1)[i]), "salt_vs_pepper": _both(0.5)},
    ),
    "speckle_noise": (
        "MultiplicativeNoise",
        lambda i, _: {
            "multiplier": (1 - (w := (0.10, 0.17, 0.21, 0.28, 0.35)[i]), 1 + w),
            "per_channel": True,
            "elementwise": True,
        },
    ),
    "defocus_blur": (
        "Defocus",
        lambda i, scale: {
            "radius": _both((1, 1, 1, 2, 2)[i] if scale < 2 else round((1, 1.5, 2, 2.5, 3)[i] * scale)),
            "alias_blur": _both((0.1, 0.5, 1.0, 0.1, 1.0)[i] if scale < 2 else 0.5),
        },
    ),
    "glass_blur": (
        "GlassBlur",
        lambda i, scale: {"sigma": 0.4, "max_delta": _pixels(1, scale), "iterations": (1, 2, 3, 5, 8)[i]},
    ),
    "motion_blur": (
        "MotionBlur",
        lambda i, scale: {
            "blur_limit": _both(_odd((3, 5, 7, 9, 11)[i] * max(1.0, scale))),
            "allow_shifted": False,
            "direction_range": _both(0.0),
        },
    ),
    "zoom_blur": (
        "ZoomBlur",
        lambda i, scale: {
            "max_factor": _both(1 + (0.06, 0.11, 0.16, 0.21, 0.26)[i] / min(1.0, scale)),
            "step_factor": _both(0.01 / min(1.0, scale)),
        },
    ),
    "gaussian_blur": (
        "GaussianBlur",
        lambda i, scale: {
            "blur_limit": 0,
            "sigma_limit": _both((0.4, 0.6, 0.7, 0.8, 1.0)[i] * max(1.0, scale)),
        },
    ),
    "fog": (
        "PlasmaBrightnessContrast",
        lambda i, _: {
            "brightness_range": _both((0.15, 0.25, 0.35, 0.45, 0.6)[i]),
            "contrast_range": _both((-0.2, -0.3, -0.4, -0.5, -0.6)[i]),
            "roughness": 0.5,
        },
    ),
    "brightness": (
        "RandomBrightnessContrast",
        lambda i, _: {"brightness_limit": _both((0.05, 0.1, 0.15, 0.2, 0.3)[i]), "contrast_limit": _both(0.0)},
    ),
    "spatter": (
        "Spatter",
        lambda i, _: {"intensity": _both((0.2, 0.35, 0.5, 0.65, 0.8)[i]), "mode": "rain"},
    ),
    "contrast": (
        "ColorJitter",
        lambda i, _: {
            "contrast": _both((0.75, 0.5, 0.4, 0.3, 0.15)[i]),
            "brightness": _both(1.0),
            "saturation": _both(1.0),
            "hue": _both(0.0),
        },
    ),
    "elastic_transform": (
        "ElasticTransform",
        lambda i, scale: {
            "alpha": (6, 9, 12, 16, 22)[i] * max(1.0, scale),
            "sigma": 3 * max(1.0, scale),
            "border_mode": _BORDER_REFLECT,
        },
    ),
    "pixelate": (
        "Downscale",
        lambda i, scale: {
            # A whole number of blocks: with others the result depends on where the grid happens to fall.
            "scale_range": _both(round((0.75, 0.6, 0.48, 0.37, 0.25)[i] * 32 * scale) / (32 * scale)),
            "interpolation_pair": {"downscale": _INTER_AREA, "upscale": _INTER_AREA},
        },
    ),
    "jpeg_compression": (
        "ImageCompression",
        lambda i, _: {"quality_range": _both((80, 65, 50, 35, 20)[i])},
    ),
    "saturate": (
        "ColorJitter",
        lambda i, _: {
            "saturation": _both((1.5, 2.0, 3.0, 4.5, 7.0)[i]),
            "brightness": _both(1.0),
            "contrast": _both(1.0),
            "hue": _both(0.0),
        },
    ),
}
