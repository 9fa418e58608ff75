"""Baselines: where a path to the image starts, given by name, tensor or function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor, described, frozen_tensor

BaselineName = Literal["black", "white", "mean", "gaussian", "blur"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
BaselineFn = Callable[..., Tensor]  # of images, or of images and seeds
# In this order a command line can tell a list of names from a function's import path.
Baseline = BaselineName | Sequence[BaselineName | BaselineFn | Tensor] | BaselineFn | Tensor

_BLUR_SHARE = 0.1  # standard deviation of the blur baseline, as a share of the image's shorter side


def checked(value: Any) -> Any:
    """Return a baseline argument, checked, with tensors wrapped and sequences as tuples."""
    if isinstance(value, str):
        validation.choice("baseline", value, BASELINES)
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(float(value))
    if isinstance(value, (Tensor, np.ndarray)):
        return frozen_tensor("baseline", value, floating=True)
    if callable(value):
        return value
    nested = isinstance(value, Sequence) and any(isinstance(v, Sequence) and not isinstance(v, str) for v in value)
    if not isinstance(value, Sequence) or not value or nested:
        names = ", ".join(map(repr, BASELINES))
        expected = f"one of {names}, a number, a tensor, a function, or a sequence of these"
        raise validation.fail("baseline", expected, repr(value))
    return tuple(checked(v) for v in value)


def make(baseline: Any, images: Tensor, seeds: Tensor, bounds: tuple[float, float]) -> list[Tensor]:
    """Return one baseline (B, C, H, W) for each that a checked argument names; random ones have their own seeds."""
    listed = baseline if isinstance(baseline, tuple) else (baseline,)
    return [_one(each, images, noise.fold(seeds, "baseline", place), bounds) for place, each in enumerate(listed)]


def is_stochastic(baseline: Any) -> bool:
    """Return whether a checked argument names a baseline that depends on the seed, or a function, which may."""
    listed = baseline if isinstance(baseline, tuple) else (baseline,)
    return any(each == "gaussian" or (callable(each) and not isinstance(each, FrozenTensor)) for each in listed)


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
    value, shape = _called(baseline, images, seeds), tuple(images.shape)
    try:
        whole = value.detach().to(images).expand(shape)
    except (AttributeError, RuntimeError) as error:
        raise validation.fail("baseline", f"a tensor that expands to {shape}", described(value)) from error
    return _in_bounds("baseline", whole, bounds)


def _called(function: BaselineFn, images: Tensor, seeds: Tensor) -> Any:
    """Return what a function gives for images, and for their seeds if it takes them.

    A function takes seeds where its second argument has no default or is called `seeds`. A built-in function without
    a signature, such as `torch.zeros_like`, gets images alone.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function(images)
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(placed) > 1:
        takes_seeds = placed[1].default is placed[1].empty or placed[1].name == "seeds"
    else:
        takes_seeds = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return function(images, seeds) if takes_seeds else function(images)


def _in_bounds(name: str, images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return images without rounding beyond the bounds; raise for argument `name` where they are no images."""
    try:
        validation.images(images, bounds)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return images.clamp(*bounds)


def blur(images: Tensor, std: float) -> Tensor:
    """Return images blurred by a Gaussian cut at three standard deviations; borders are continued.

    Args:
        images: (B, C, H, W).
        std: standard deviation in pixels.
    """
    radius = max(1, math.ceil(3 * std))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    line = torch.exp(-0.5 * (offsets / std).square())
    line = line / line.sum()
    channels = images.shape[1]
    wide = F.pad(images, (radius,) * 4, mode="replicate")
    rows = F.conv2d(wide, line.reshape(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(rows, line.reshape(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def checked_references(value: Any) -> Any:
    """Return an argument for `references`: None, a function, or a wrapped tensor."""
    return value if callable(value) else frozen_tensor("references", value, floating=True)


def references(source: Any, images: Tensor, seeds: Tensor, bounds: tuple[float, float], stand_ins: int) -> Tensor:
    """Return reference images (R, C, H, W).

    Args:
        source: what `checked_references` returned.
        images: (B, C, H, W).
        seeds: (B,).
        bounds: valid pixel range.
        stand_ins: number of uniform noise images, the same in every call, that are used where `source` is None.
    """
    shape = tuple(images.shape[1:])
    if source is None:
        keys = noise.fold(torch.arange(stand_ins, device=images.device), "references")
        return bounds[0] + (bounds[1] - bounds[0]) * noise.uniform(keys, shape, images.dtype)
    found = _called(source, images, seeds)
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) == 0 or found.shape[1:] != shape:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise validation.fail("references", f"a non-empty tensor (R, {', '.join(map(str, shape))})", got)
    return _in_bounds("references", found.detach(), bounds).to(images)
