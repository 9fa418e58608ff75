"""Argument checks: every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-6  # a uint8 -> float -> uint8 round trip may leave the bounds by rounding


def fail(name: str, expected: str, got: object) -> ValueError:
    """Return the error for argument `name`."""
    return ValueError(f"{name}: expected {expected}, got {got}")


def warn(message: str) -> None:
    """Warn at the line outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "robustsigma":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def not_finite(what: str, where: object) -> ValueError:
    """Return the error for a network whose numbers are NaN or infinite.

    Args:
        what: numbers they are, such as "logits".
        where: the method that saw them.
    """
    return fail("net", f"finite {what}", f"NaN or infinity, in {type(where).__name__}")


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise unless `value` is a finite number in [low, high], or (low, high] with `open_low`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = is_number and math.isfinite(value) and low <= value <= high and not (open_low and value == low)
    if not inside:
        raise fail(name, f"a finite number in {'(' if open_low else '['}{low}, {high}]", repr(value))


def integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise unless `value` is an int of at least `low`, and at most `high` if that is given."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise fail(name, expected, repr(value))


def several(name: str, value: Any) -> None:
    """Raise unless `value` is a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise fail(name, "a list", repr(value)[:80])


def as_tuple(settings: object, name: str) -> None:
    """Make a list in frozen settings a tuple, which compares and hashes."""
    value = getattr(settings, name)
    if isinstance(value, list):
        object.__setattr__(settings, name, tuple(value))


def mapping(name: str, value: Any) -> None:
    """Raise unless `value` is a mapping from texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise fail(name, "a mapping from names", repr(value)[:80])


def distinct(name: str, values: Iterable[str]) -> None:
    """Raise where two names differ only in case, blanks and underscores: they may be one file, or look alike."""
    seen: dict[str, str] = {}
    for value in values:
        key = value.casefold().replace(" ", "_")
        if key in seen:
            raise fail(name, "names that differ in more than case, blanks and underscores", f"{seen[key]!r}, {value!r}")
        seen[key] = value


def instance(name: str, value: Any, kind: type) -> None:
    """Raise unless `value` is of a class."""
    if not isinstance(value, kind):
        raise fail(name, f"a {kind.__name__}", repr(value)[:80])


def optional(name: str, value: Any, kind: type) -> None:
    """Raise unless `value` is None or of a class."""
    if value is not None and not isinstance(value, kind):
        raise fail(name, f"a {kind.__name__} or None", repr(value)[:80])


def choice(name: str, value: Any, options: Collection[str]) -> None:
    """Raise unless `value` is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise fail(name, "one of " + ", ".join(map(repr, options)), repr(value))


def defaults(settings: Any, names: Sequence[str], given: str) -> None:
    """Raise unless a dataclass has the defaults in the named fields, as `given`, another setting of it, demands."""
    for name in names:
        default = settings.__dataclass_fields__[name].default
        if getattr(settings, name) != default:
            raise fail(name, f"{default!r} with {given}", repr(getattr(settings, name)))


def images(x: Any, bounds: tuple[float, float]) -> None:
    """Raise unless `x` is a finite, non-empty float (B, C, H, W) within `bounds`."""
    if not isinstance(x, Tensor):
        raise fail("images", "a tensor (B, C, H, W)", type(x).__name__)
    if x.ndim != 4 or 0 in x.shape:
        raise fail("images", "a non-empty batch (B, C, H, W)", f"shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise fail("images", f"a floating dtype with values in {list(bounds)}", str(x.dtype))
    low, high = extent(x.detach())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise fail("images", "finite values", "NaN or infinity")
    if low < bounds[0] - _TOLERANCE or high > bounds[1] + _TOLERANCE:
        hint = "; normalisation belongs in Classifier(mean=…, std=…)"
        raise fail("images", f"values in [{bounds[0]:g}, {bounds[1]:g}]", f"[{low:.4g}, {high:.4g}]{hint}")


def target(value: Any, x: Tensor, name: str = "target") -> Tensor:
    """Return class indices as int64 (B,) on the device of `x`; an int stands for every image."""
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise fail(name, "integer class indices", repr(value)) from None
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise fail(name, "integer class indices", str(value.dtype))
    if value.ndim == 0:
        value = value.expand(len(x))
    if value.shape != (len(x),):
        raise fail(name, f"an int or shape ({len(x)},), one class per image", f"shape {tuple(value.shape)}")
    return value.to(x.device, torch.int64)


def extent(values: Tensor) -> tuple[Any, Any]:
    """Return the lowest and the highest value as numbers, NaN where any is; waits for the device once."""
    low, high = torch.stack(values.aminmax()).tolist()
    return low, high


def target_range(extent: tuple[int, int], classes: int, name: str = "target") -> None:
    """Raise unless class indices of this extent are in [0, classes)."""
    low, high = extent
    if low < 0 or high >= classes:
        raise fail(name, f"class indices in [0, {classes - 1}]", f"[{low}, {high}]")


def are_probabilities(values: Tensor) -> bool:
    """Return whether rows (B, K) are non-negative and sum to 1, as a softmax's do."""
    sums = values.float().sum(1)
    return bool((values >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())


def logits(values: Tensor) -> None:
    """Raise where a network's output (B, K) is probabilities, whose softmax says little.

    Rows of ones and zeros alone may be the logits of a network as simple as that.
    """
    if are_probabilities(values) and bool(((values > 0) & (values < 1)).any()):
        raise fail("net", "logits", "probabilities (non-negative rows that sum to 1): leave its softmax out")
