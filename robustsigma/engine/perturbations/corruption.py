"""The 19 families of common corruptions of Hendrycks and Dietterich (2019), drawn on the fly: like CIFAR-10-C, not it.

Albumentations draws 17 of them; it has no snow with flakes and no frost, which `weather` draws. The strengths are this
package's own, near those of CIFAR-10-C where the transform is the same. Lengths are in pixels of a 32-pixel image and
grow with larger images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.weather import frost, snow

_LIKE = "-like"
_MIN_SIDE = 8  # pixels
_LOCK = Lock()  # a transform holds its generator, and threads share transforms
_NEEDS_COLOR = ("spatter",)  # gray images get three equal channels
_INTER_AREA, _BORDER_REFLECT = 3, 4  # OpenCV's constants


def _fixed(value: float) -> tuple[float, float]:
    """Return a range of one value: the transforms draw their strength from a range."""
    return (value, value)


def _jitter(**factors: float) -> dict[str, Any]:
    """Return the arguments of a ColorJitter that changes only the given factors."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    return {name: _fixed(value) for name, value in {**neutral, **factors}.items()}


# For each family: the Albumentations transform, its strength at severities 1 to 5, and its arguments from the strength
# and the image's side / 32.
_FAMILIES: dict[str, tuple[str, tuple[Any, ...], Callable[[Any, float], dict[str, Any]]]] = {
    "gaussian_noise": ("GaussNoise", (0.04, 0.06, 0.08, 0.10, 0.13), lambda v, _: {"std_range": _fixed(v)}),
    "shot_noise": ("ShotNoise", (0.002, 0.004, 0.010, 0.015, 0.025), lambda v, _: {"scale_range": _fixed(v)}),
    "impulse_noise": (
        *("SaltAndPepper", (0.02, 0.035, 0.05, 0.07, 0.1)),
        lambda v, _: {"amount": _fixed(v), "salt_vs_pepper": _fixed(0.5)},
    ),
    "speckle_noise": (
        *("MultiplicativeNoise", (0.10, 0.17, 0.21, 0.28, 0.35)),
        lambda v, _: {"multiplier": (1 - v, 1 + v), "per_channel": True, "elementwise": True},
    ),
    "defocus_blur": (  # radius and blur of its edge in small images; radius in large ones
        *("Defocus", ((1, 0.1, 1), (1, 0.5, 1.5), (1, 1.0, 2), (2, 0.1, 2.5), (2, 1.0, 3))),
        lambda v, scale: {
            "radius": _fixed(v[0] if scale < 2 else round(v[2] * scale)),
            "alias_blur": _fixed(v[1] if scale < 2 else 0.5),
        },
    ),
    "glass_blur": (
        *("GlassBlur", (1, 2, 3, 5, 8)),
        lambda v, scale: {"sigma": 0.4, "max_delta": max(1, round(max(1.0, scale))), "iterations": v},
    ),
    "motion_blur": (
        *("MotionBlur", (3, 5, 7, 9, 11)),
        lambda v, scale: {
            "blur_limit": _fixed(2 * round((v * max(1.0, scale) - 1) / 2) + 1),  # odd
            "allow_shifted": False,
            "direction_range": _fixed(0.0),
        },
    ),
    "zoom_blur": (
        *("ZoomBlur", (0.06, 0.11, 0.16, 0.21, 0.26)),
        lambda v, scale: {
            "max_factor": _fixed(1 + v / min(1.0, scale)),
            "step_factor": _fixed(0.01 / min(1.0, scale)),
        },
    ),
    "gaussian_blur": (
        *("GaussianBlur", (0.4, 0.6, 0.7, 0.8, 1.0)),
        lambda v, scale: {"blur_limit": 0, "sigma_limit": _fixed(v * max(1.0, scale))},
    ),
    "fog": (
        *("PlasmaBrightnessContrast", ((0.15, -0.2), (0.25, -0.3), (0.35, -0.4), (0.45, -0.5), (0.6, -0.6))),
        lambda v, _: {"brightness_range": _fixed(v[0]), "contrast_range": _fixed(v[1]), "roughness": 0.5},
    ),
    "brightness": (
        *("RandomBrightnessContrast", (0.05, 0.1, 0.15, 0.2, 0.3)),
        lambda v, _: {"brightness_limit": _fixed(v), "contrast_limit": _fixed(0.0)},
    ),
    "spatter": ("Spatter", (0.2, 0.35, 0.5, 0.65, 0.8), lambda v, _: {"intensity": _fixed(v), "mode": "rain"}),
    "contrast": ("ColorJitter", (0.75, 0.5, 0.4, 0.3, 0.15), lambda v, _: _jitter(contrast=v)),
    "elastic_transform": (
        *("ElasticTransform", (6, 9, 12, 16, 22)),
        lambda v, scale: {
            "alpha": v * max(1.0, scale),
            "sigma": 3 * max(1.0, scale),
            "border_mode": _BORDER_REFLECT,
        },
    ),
    "pixelate": (
        *("Downscale", (0.75, 0.6, 0.48, 0.37, 0.25)),
        lambda v, scale: {
            # A whole number of blocks: otherwise the result depends on where the grid falls.
            "scale_range": _fixed(round(v * 32 * scale) / (32 * scale)),
            "interpolation_pair": {"downscale": _INTER_AREA, "upscale": _INTER_AREA},
        },
    ),
    "jpeg_compression": ("ImageCompression", (80, 65, 50, 35, 20), lambda v, _: {"quality_range": _fixed(v)}),
    "saturate": ("ColorJitter", (1.5, 2.0, 3.0, 4.5, 7.0), lambda v, _: _jitter(saturation=v)),
}
_DRAWN_HERE = {"snow": snow, "frost": frost}
CORRUPTIONS = (*_FAMILIES, *_DRAWN_HERE)
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption(Perturbation):
    """Apply a common corruption like those of CIFAR-10-C.

    After Hendrycks and Dietterich (2019), with other code and other strengths. A result is "CIFAR-10-C-like": do not
    compare it with numbers on the published files, which `robustsigma.data.CorruptionArrays` reads. On average, every
    severity moves images farther than the one before. "snow" and "frost" are drawn in batches on the images' device.
    The others are drawn by Albumentations on the CPU, image by image: pip install 'robustsigma[augment]'.

    Args:
        name: one of `CORRUPTIONS`; "-like" is appended, so that every printed setting says it. "saturate" needs color
            images.
        severity: an integer from 1 to 5.

    Raises:
        ImportError: Albumentations is not installed.
        ValueError: images that are not gray or RGB of at least 8 pixels a side.

    Example:
        >>> Corruption("motion_blur", severity=3)(classifier, images, labels, seed=0)
    """

    name: str = "gaussian_noise"
    severity: int = 3
    depends_on_model = False

    def __post_init__(self) -> None:
        if isinstance(self.name, str):
            object.__setattr__(self, "name", self.name.removesuffix(_LIKE) + _LIKE)
        validation.choice("name", self.name, [name + _LIKE for name in CORRUPTIONS])
        validation.integer("severity", self.severity, 1, 5)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return corrupted images."""
        _, channels, height, width = images.shape
        family = self.name.removesuffix(_LIKE)
        wanted = (3,) if family == "saturate" else (1, 3)
        if channels not in wanted or min(height, width) < _MIN_SIDE:
            expected = f"{' or '.join(map(str, wanted))} channels of at least {_MIN_SIDE} pixels a side"
            raise validation.fail("images", f"{expected} for {self.name}", f"shape {tuple(images.shape)}")
        if family in _DRAWN_HERE:
            made = _DRAWN_HERE[family](images, noise.fold(seeds, "corruption"), self.severity, min(height, width) / 32)
            return Perturbed.plain(made)
        transform = _transform(family, self.severity, min(height, width))
        keys = (noise.fold(seeds, "corruption") & (2**32 - 1)).tolist()
        pixels = images.float().cpu().permute(0, 2, 3, 1).numpy()
        if channels == 1 and family in _NEEDS_COLOR:
            pixels = pixels.repeat(3, 3)
        with _LOCK:
            result = np.stack([_corrupted(transform, image, key) for image, key in zip(pixels, keys, strict=True)])
        result = result.mean(3, keepdims=True) if channels == 1 else result
        return Perturbed.plain(
            torch.from_numpy(result).permute(0, 3, 1, 2).to(images.device, images.dtype).contiguous()
        )


def _corrupted(transform: Any, image: np.ndarray[Any, Any], key: int) -> np.ndarray[Any, Any]:
    """Return one image (H, W, C) corrupted with the draws of its key; transforms may write on a copy only."""
    transform.set_random_seed(key)
    result = np.asarray(transform(image=np.array(image, order="C"))["image"], dtype=np.float32)
    return result.reshape(image.shape).clip(0, 1)


@lru_cache(maxsize=32)
def _transform(name: str, severity: int, side: int) -> Any:
    library = albumentations_library("Corruption")
    kind, strengths, arguments = _FAMILIES[name]
    return library.Compose([getattr(library, kind)(**arguments(strengths[severity - 1], side / 32), p=1.0)])


def albumentations_library(needed_by: str) -> Any:
    """Return the optional module `albumentations`, imported when it is first needed.

    Raises:
        ImportError: it is not installed; the message names `needed_by` and how to install it.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import asks the network for its version
    try:
        import albumentations
    except ImportError as error:
        raise ImportError(f"{needed_by} needs albumentations: pip install 'robustsigma[augment]'") from error
    return albumentations
