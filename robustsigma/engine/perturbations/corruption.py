"""Common corruptions drawn on the fly: CIFAR-10-C-like, not CIFAR-10-C."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.albumentations_library import albumentations_library
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.corruption_families import FAMILIES

CORRUPTIONS = tuple(FAMILIES)
SEVERITIES = (1, 2, 3, 4, 5)
_LIKE = "-like"
_SMALLEST = 8  # pixels
_ONE_AT_A_TIME = Lock()  # a transform holds its generator, and threads share transforms
_NEEDS_COLOUR = ("spatter",)  # gray images are lent three equal channels


@dataclass(frozen=True)
class Corruption(Perturbation):
    """A common corruption like those of CIFAR-10-C, drawn by Albumentations on the CPU, image by image.

    After Hendrycks and Dietterich (2019), but with other code and other strengths: a result is "CIFAR-10-C-like" and
    must not stand beside numbers on the published files, which `robustsigma.data.array_files` reads. Every
    severity moves images farther than the one before, on average. Needs the extra: pip install 'robustsigma[augment]'.

    Args:
        name: one of `CORRUPTIONS`; "-like" is appended, so that every print of the settings says it. "saturate" is
            for color images only.
        severity: 1 to 5.

    Raises:
        ImportError: Albumentations is not installed.
        ValueError: images that are not gray or RGB of at least 8 pixels a side.
    """

    name: str = "gaussian_noise"
    severity: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.name, str):
            object.__setattr__(self, "name", self.name.removesuffix(_LIKE) + _LIKE)
        validation.choice("name", self.name, [name + _LIKE for name in CORRUPTIONS])
        if type(self.severity) is not int or self.severity not in SEVERITIES:
            raise validation.fail("severity", "an integer from 1 to 5", repr(self.severity))

    @property
    def depends_on_model(self) -> bool:
        """False."""
        return False

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return corrupted images."""
        _, channels, height, width = x.shape
        family = self.name.removesuffix(_LIKE)
        wanted = (3,) if family == "saturate" else (1, 3)
        if channels not in wanted or min(height, width) < _SMALLEST:
            expected = f"{' or '.join(map(str, wanted))} channels of at least {_SMALLEST} pixels a side"
            raise validation.fail("images", f"{expected} for {self.name}", f"shape {tuple(x.shape)}")
        transform = _transform(family, self.severity, min(height, width))
        keys = (noise.fold(seeds, "corruption") & (2**32 - 1)).tolist()
        pixels = x.float().cpu().permute(0, 2, 3, 1).numpy()
        if channels == 1 and family in _NEEDS_COLOUR:
            pixels = pixels.repeat(3, 3)
        with _ONE_AT_A_TIME:
            result = np.stack([_drawn(transform, image, key) for image, key in zip(pixels, keys, strict=True)])
        result = result.mean(3, keepdims=True) if channels == 1 else result
        return Perturbed.plain(torch.from_numpy(result).permute(0, 3, 1, 2).to(x.device, x.dtype).contiguous())


def _drawn(transform: Any, image: np.ndarray[Any, Any], key: int) -> np.ndarray[Any, Any]:
    """Return one image (H, W, C) corrupted by the draws of its own key; a copy, since transforms may write on it."""
    transform.set_random_seed(key)
    result = np.asarray(transform(image=np.array(image, order="C"))["image"], dtype=np.float32)
    return result.reshape(image.shape).clip(0, 1)


@lru_cache(maxsize=32)
def _transform(name: str, severity: int, side: int) -> Any:
    library = albumentations_library("Corruption")
    kind, arguments = FAMILIES[name]
    return library.Compose([getattr(library, kind)(**arguments(severity - 1, side / 32), p=1.0)])
