"""Baselines: where a straight line to the image starts, given by name, tensor or function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.serialization import safe_in_checkpoints

BaselineName = Literal["black", "white", "mean", "gaussian", "blur"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
Function = Callable[..., Tensor]  # of images, or of images and seeds
# In this order a command line can tell a list of names from a function's import path.
Baseline = BaselineName | Sequence[BaselineName | Function | Tensor] | Function | Tensor

# The standard deviation of the blur baseline, as a share of the image's shorter side.
_BLUR_SHARE = 0.1


@safe_in_checkpoints
@dataclass(frozen=True, eq=False, repr=False)
class Given:
    """A tensor handed to a constructor: it compares and hashes by content and prints as its shape.

    As a baseline it stands for every image it can be expanded to.

    Args:
        tensor: copied, so that later changes in place do not reach it.
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensor", self.tensor.detach().clone())

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Return the tensor as a baseline, in the dtype and on the device of the images."""
        return self.tensor.to(images)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and torch.equal(self.tensor.cpu(), other.tensor.cpu())

    def __hash__(self) -> int:
        return hash((self.tensor.shape, self.tensor.cpu().double().sum().item()))

    def __repr__(self) -> str:
        return f"Given({self.tensor.dtype}, shape {tuple(self.tensor.shape)})"


def given(name: str, value: Any, *, floating: bool) -> Given | None:
    """Return a checked optional tensor argument, wrapped."""
    if value is None or isinstance(value, Given):
        return value
    if isinstance(value, np.ndarray):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.is_floating_point() != floating or value.numel() == 0:
        raise validation.fail(name, f"a non-empty {'float' if floating else 'integer'} tensor or None", _kind(value))
    if not torch.isfinite(value).all():
        raise validation.fail(name, "finite values", "NaN or infinity")
    return Given(value)


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def checked(value: Any) -> Any:
    """Return a baseline argument, checked, with tensors wrapped and sequences as tuples."""
    if isinstance(value, str):
        validation.choice("baseline", value, BASELINES)
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(float(value))
    if isinstance(value, (Tensor, np.ndarray)):
        return given("baseline", value, floating=True)
    if callable(value):
        return value
    if (
        not isinstance(value, Sequence)
        or not value
        or any(isinstance(v, Sequence) and not isinstance(v, str) for v in value)
    ):
        names = ", ".join(map(repr, BASELINES))
        raise validation.fail(
            "baseline", f"one of {names}, a number, a tensor, a function, or a sequence of these", repr(value)
        )
    return tuple(checked(v) for v in value)


def make(baseline: Any, images: Tensor, seeds: Tensor, bounds: tuple[float, float]) -> list[Tensor]:
    """Return one baseline (B, C, H, W) for each that a checked argument names; they differ where they are random."""
    listed = baseline if isinstance(baseline, tuple) else (baseline,)
    return [_one(each, images, noise.fold(seeds, "baseline", place), bounds) for place, each in enumerate(listed)]


def draws(baseline: Any) -> bool:
    """Return whether a checked argument names a baseline that depends on the seed, or a function, which may."""
    listed = baseline if isinstance(baseline, tuple) else (baseline,)
    return any(each == "gaussian" or (callable(each) and not isinstance(each, Given)) for each in listed)


def _one(baseline: Any, images: Tensor, seeds: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    if baseline == "black":
        return torch.full_like(images, low)
    if baseline == "white":
        return torch.full_like(images, high)
    if baseline == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images).contiguous()
    if baseline == "gaussian":
        drawn = noise.gaussian(seeds, tuple(images.shape[1:]), images.dtype)
        return ((low + high) / 2 + (high - low) / 4 * drawn).clamp(low, high)
    if baseline == "blur":
        return blur(images, _BLUR_SHARE * min(images.shape[2:]))
    return _in_range(_called(baseline, images, seeds), images, bounds)


def _called(function: Callable[..., Tensor], images: Tensor, seeds: Tensor) -> Tensor:
    """Return what a function gives for images, and for their seeds if it takes them.

    It takes them where its second argument has no default or is called `seeds`. A built-in, such as
    `torch.zeros_like`, whose arguments Python does not tell, gets images alone.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function(images)
    several = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = placed[1] if len(placed) > 1 else None
    takes_seeds = several if second is None else second.default is second.empty or second.name == "seeds"
    return function(images, seeds) if takes_seeds else function(images)


def _in_range(value: Any, images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return what a tensor or a function gave, expanded to the images, or raise."""
    shape = tuple(images.shape)
    try:
        whole = value.detach().to(images).expand(shape)
    except (AttributeError, RuntimeError) as error:
        raise validation.fail("baseline", f"a tensor that expands to {shape}", _kind(value)) from error
    try:
        validation.images(whole, bounds)
    except ValueError as error:
        raise ValueError(f"baseline: {error}") from error
    return whole.clamp(*bounds)


def blur(images: Tensor, std: float) -> Tensor:
    """Return images blurred by a Gaussian cut at three standard deviations; borders are continued.

    Args:
        images: (B, C, H, W).
        std: in pixels.
    """
    radius = max(1, math.ceil(3 * std))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    line = torch.exp(-0.5 * (offsets / std).square())
    line = line / line.sum()
    channels = images.shape[1]
    wide = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(wide, line.reshape(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(rows, line.reshape(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def references(
    source: Callable[..., Tensor] | None, images: Tensor, seeds: Tensor, bounds: tuple[float, float], stand_ins: int
) -> Tensor:
    """Return references (R, C, H, W), checked: from a function or a wrapped tensor, or noise images in their place.

    Args:
        source: a function of images, or of images and seeds, that returns references; or None.
        images: (B, C, H, W).
        seeds: (B,).
        bounds: of pixels.
        stand_ins: how many uniform noise images, the same in every call, stand for None.
    """
    shape = tuple(images.shape[1:])
    if source is None:
        keys = noise.fold(torch.arange(stand_ins, device=images.device), "references")
        return bounds[0] + (bounds[1] - bounds[0]) * noise.uniform(keys, shape, images.dtype)
    bank = _called(source, images, seeds)
    if not isinstance(bank, Tensor) or bank.ndim != 4 or len(bank) == 0 or bank.shape[1:] != shape:
        got = f"shape {tuple(bank.shape)}" if isinstance(bank, Tensor) else type(bank).__name__
        raise validation.fail("references", f"a non-empty tensor (R, {', '.join(map(str, shape))})", got)
    try:
        validation.images(bank, bounds)
    except ValueError as error:
        raise ValueError(f"references: {error}") from error
    return bank.detach().to(images).clamp(*bounds)
