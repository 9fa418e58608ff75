"""Tensors as settings: they compare by content and print as their shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.serialization import safe_in_checkpoints


@safe_in_checkpoints
@dataclass(frozen=True, eq=False, repr=False)
class FrozenTensor:
    """A tensor that was passed to a constructor: it compares and hashes by content and prints as its shape.

    As a baseline it stands for every image it can be expanded to.

    Args:
        tensor: copied, so that later changes in place do not affect the setting.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensor", self.tensor.detach().clone())

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Return the tensor as a baseline, in the dtype and on the device of the images."""
        return self.tensor.to(images)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenTensor) and torch.equal(self.tensor.cpu(), other.tensor.cpu())

    def __hash__(self) -> int:
        return hash((self.tensor.shape, self.tensor.cpu().double().sum().item()))

    def __repr__(self) -> str:
        return f"FrozenTensor({self.tensor.dtype}, shape {tuple(self.tensor.shape)})"

    def expanded(self, name: str, shape: tuple[int, ...], like: Tensor, high: int = 1) -> Tensor:
        """Return the tensor expanded to a shape, with the dtype and device of `like`.

        Raises:
            ValueError: for argument `name`, another shape, or values outside [0, high].
        """
        least, most = validation.extent(self.tensor)
        if least < 0 or most > high:
            raise validation.fail(name, f"values in [0, {high}]", f"[{least:.4g}, {most:.4g}]")
        try:
            return self.tensor.to(like).expand(shape)
        except RuntimeError as error:
            got = f"shape {tuple(self.tensor.shape)}"
            raise validation.fail(name, f"a shape that expands to {shape}", got) from error


def frozen_tensor(name: str, value: Any, *, floating: bool) -> FrozenTensor | None:
    """Return an optional tensor argument, checked and wrapped."""
    if value is None or isinstance(value, FrozenTensor):
        return value
    if isinstance(value, np.ndarray):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.is_floating_point() != floating or value.numel() == 0:
        expected = f"a non-empty {'float' if floating else 'integer'} tensor or None"
        raise validation.fail(name, expected, described(value))
    if not torch.isfinite(value).all():
        raise validation.fail(name, "finite values", "NaN or infinity")
    return FrozenTensor(value)


def described(value: object) -> str:
    """Return a short text for a value in an error message."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
