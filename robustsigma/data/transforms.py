"""`Albumentations`: augmentation of training images by the library of that name, described in YAML."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine.perturbations.corruption import albumentations_library
from robustsigma.engine.serialization import safe_in_checkpoints
from robustsigma.engine.validation import fail, several


@safe_in_checkpoints
@dataclass(frozen=True)
class Albumentations:
    """A sequence of Albumentations transforms that keep the image's shape.

    Args:
        transforms: one mapping per transform, with its `name`, such as HorizontalFlip, and its arguments.

    Example:
        >>> Albumentations([{"name": "HorizontalFlip", "p": 0.5}])
    """

    transforms: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        several("transforms", self.transforms)
        if self.transforms:
            _ = self._compose  # reports bad names and arguments at once

    def apply(self, image: Tensor, seed: int) -> Tensor:
        """Return the image transformed; equal seeds give equal images.

        Args:
            image: float (C, H, W) in [0, 1] on the CPU, with C 1 or 3.
            seed: seed of all random choices.

        Returns:
            Float in [0, 1], of the same shape and dtype.
        """
        if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
            raise fail("image", "float (C, H, W) with 1 or 3 channels", f"{image.dtype} {tuple(image.shape)}")
        if not self.transforms:
            return image
        compose = self._compose
        compose.set_random_seed(seed % 2**32)
        pixels = np.ascontiguousarray(image.detach().permute(1, 2, 0).numpy(), dtype=np.float32)
        result = np.asarray(compose(image=pixels)["image"], dtype=np.float32)
        if result.ndim == 2:
            result = result[:, :, None]
        if result.shape != pixels.shape:
            raise fail("transforms", f"to keep the image's shape {pixels.shape}", result.shape)
        return torch.from_numpy(result.clip(0, 1).transpose(2, 0, 1).copy()).to(image.dtype)

    @cached_property
    def _compose(self) -> Any:
        library = albumentations_library("Albumentations")
        return library.Compose([_build(library, i, entry) for i, entry in enumerate(self.transforms)])


def _build(library: Any, index: int, entry: dict[str, Any]) -> Any:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise fail(f"transforms[{index}]", "a mapping with a name", repr(entry))
    kind = getattr(library, name, None)
    if not (isinstance(kind, type) and issubclass(kind, library.BasicTransform)):
        raise fail(f"transforms[{index}]", "the name of an Albumentations transform", repr(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # how Albumentations reports an unknown argument
            return kind(**{key: value for key, value in entry.items() if key != "name"})
    except (TypeError, ValueError, UserWarning) as error:
        raise fail(f"transforms[{index}]", f"valid arguments of {name}", error) from error
