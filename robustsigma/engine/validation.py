"""Argument checks: every error names the argument, what was expected and what came."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import pairwise
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine.serialization import safe_in_checkpoints

_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels instead")
_TOLERANCE = 1e-6  # a uint8 -> float -> uint8 round trip may leave the bounds by rounding


def fail(name: str, expected: str, got: object) -> ValueError:
    """Return the error for argument `name`."""
    return ValueError(f"{name}: expected {expected}, got {got}")


def warn(message: str) -> None:
    """Warn at the line outside this package that led here."""
    level, frame = 1, sys._getframe()
    ours = ("robustsigma", "functools")  # whose cached properties call ours
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def takes_no_images(net: torch.nn.Module, error: Exception) -> ValueError:
    """Return the error for a network that raised one when it was given images for the first time."""
    parts = ", ".join(repr(name) for name, _ in net.named_children())
    hint = f"; if it takes whole batches, use the network inside it, one of its parts {parts}" if parts else ""
    got = f"{type(net).__name__}, which raised {type(error).__name__}: {error}{hint}"
    return fail("net", "a network that takes images (B, C, H, W) and nothing else", got)


def no_logits(output: Any, count: int) -> ValueError:
    """Return the error for a network's output that is not the logits of `count` images, of two or more classes."""
    expected, wrap = f"logits of shape ({count}, K), K >= 2", "; wrap the network in a module that returns"
    if isinstance(output, Mapping | list | tuple):
        places = [*output] if isinstance(output, Mapping) else [*range(len(output))]
        what = f"keys {repr(places)[:80]}" if isinstance(output, Mapping) else f"length {len(output)}"
        got = f"{type(output).__name__} of {what}"
        found = [place for place in places if isinstance(output[place], Tensor) and output[place].ndim == 2]
        place = "logits" if "logits" in found else (found or [None])[0]
        hint = "" if place is None else f"{wrap} the logits, such as net(images)[{place!r}]"
    elif isinstance(output, Tensor):
        shape = tuple(output.shape)
        got, hint = f"shape {shape}", ""
        if shape in ((count,), (count, 1)):
            join = "cat" if output.ndim == 2 else "stack"
            hint = f"{wrap} two logits instead of its one, z: torch.{join}([torch.zeros_like(z), z], 1)"
    else:
        got, hint = type(output).__name__, ""
    return fail("net", expected, f"{got}{hint}")


def not_finite(what: str, where: object) -> ValueError:
    """Return the error for a network whose numbers are NaN or infinite.

    Args:
        what: numbers they are, such as "logits".
        where: the method that saw them.
    """
    return fail("net", f"finite {what}", f"NaN or infinity, in {type(where).__name__}")


def plain(value: Any) -> Any:
    """Return a value of Python's own simple types, so that settings compare, hash and can be written to a file.

    A NumPy scalar, or an array or tensor without dimensions, becomes a Python number, and a one-dimensional array
    becomes a list. A path becomes text. So do those within lists, tuples and dictionaries.
    """
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0):
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return {key: plain(each) for key, each in value.items()} if type(value) is dict else value


class Settings:
    """Base class of frozen dataclasses that hold settings.

    Before a class's own checks, fields become `plain`, lists become tuples, what is declared as bool must be one, and
    what is declared as a `Literal` must be one of its texts. Checkpoints may hold such settings.

    Example:
        >>> FGSM(eps=np.float64(0.1)) == FGSM(eps=0.1)
        True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        safe_in_checkpoints(cls)
        if "__post_init__" in cls.__dict__:
            check = cls.__dict__["__post_init__"]

            @functools.wraps(check)
            def convert_and_check(self: Settings) -> None:
                Settings.__post_init__(self)
                check(self)

            cls.__post_init__ = convert_and_check  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in self.__dict__:
                found, hint = plain(self.__dict__[field.name]), hints.get(field.name)
                if hint is bool:
                    found = boolean(field.name, found)
                elif get_origin(hint) is Literal:
                    choice(field.name, found, get_args(hint))
                object.__setattr__(self, field.name, tuple(found) if type(found) is list else found)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a class's fields."""
    try:
        return get_type_hints(kind)
    except NameError:  # of a name that is local, or imported for type checkers alone: those of its bases are known
        return {name: hint for base in kind.__bases__ for name, hint in _hints(base).items()}


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> float:
    """Return `value` as a Python number; raise unless it is finite in [low, high], or (low, high] with `open_low`."""
    found = plain(value)
    is_number = isinstance(found, Real) and not isinstance(found, bool)
    if not (is_number and math.isfinite(found) and low <= found <= high and not (open_low and found == low)):
        raise fail(name, f"a finite number in {'(' if open_low else '['}{low}, {high}]", repr(value)[:80])
    return found


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool; raise unless it is True or False: the text "false" would count as true."""
    found = plain(value)
    if not isinstance(found, bool):
        raise fail(name, "True or False", repr(value)[:80])
    return found


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int; raise unless it is one of at least `low`, and at most `high` if that is given."""
    found = plain(value)
    is_integer = isinstance(found, Integral) and not isinstance(found, bool)
    if not is_integer or found < low or (high is not None and found > high):
        expected = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise fail(name, expected, repr(value)[:80])
    return found


def several(name: str, value: Any) -> None:
    """Raise unless `value` is a list or a tuple."""
    if not isinstance(value, (list, tuple)):
        raise fail(name, "a list", repr(value)[:80])


def shares(name: str, values: Any, *, inside: bool = False, increasing: bool = False) -> None:
    """Raise unless `values` is a list of numbers in [0, 1], at least one; (0, 1) if `inside`; in `increasing` order."""
    several(name, values)
    for value in values:
        number(name, value, 0, 1)
    if not values or (inside and {0, 1} & {*values}) or (increasing and any(a >= b for a, b in pairwise(values))):
        expected = f"at least one number in {'(0, 1)' if inside else '[0, 1]'}{', increasing' if increasing else ''}"
        raise fail(name, expected, repr(values))


def mapping(name: str, value: Any) -> None:
    """Raise unless `value` is a mapping from texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise fail(name, "a mapping from names", repr(value)[:80])


def merged(arguments: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of arguments and further ones that were given as keywords; raise for one that is given twice."""
    given = plain({} if arguments is None else arguments)
    mapping("arguments", given)
    if twice := given.keys() & keywords.keys():
        raise fail("arguments", "each to be given once", ", ".join(sorted(twice)))
    return {**given, **plain(dict(keywords))}


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
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise fail(name, f"{article} {kind.__name__}", repr(value)[:80])


def optional(name: str, value: Any, kind: type) -> None:
    """Raise unless `value` is None or of a class."""
    if value is not None and not isinstance(value, kind):
        raise fail(name, f"a {kind.__name__} or None", repr(value)[:80])


def choice(name: str, value: Any, options: Collection[str]) -> None:
    """Raise unless `value` is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise fail(name, "one of " + ", ".join(map(repr, options)), repr(value) + near(value, options))


def near(value: Any, options: Iterable[str]) -> str:
    """Return a question that names the options most like `value`, such as "; did you mean 'linf'?", or nothing.

    Those that contain it come first, as "frog" is part of "tree frog".
    """
    name = value.lower() if isinstance(value, str) else ""
    by_lower = {option.lower(): option for option in options}
    found = [option for option in by_lower if len(name) > 2 and name in option][:3]
    found = found or get_close_matches(name, by_lower, n=1)
    return f"; did you mean {' or '.join(repr(by_lower[each]) for each in found)}?" if found else ""


def images(x: Any, bounds: tuple[float, float]) -> None:
    """Raise unless `x` is a finite, non-empty float (B, C, H, W) within `bounds`."""
    if not isinstance(x, Tensor):
        hint = "; torch.as_tensor(images) makes one" if isinstance(x, (np.ndarray, list)) else ""
        raise fail("images", "a tensor (B, C, H, W)", f"{type(x).__name__}{hint}")
    shape, hint = tuple(x.shape), ""
    if x.ndim == 3 and 0 not in shape:
        hint = f"; images{'.permute(2, 0, 1)' if channels_last(shape) else ''}.unsqueeze(0) is a batch of one image"
    if x.ndim != 4 or 0 in shape:
        raise fail("images", "a non-empty batch (B, C, H, W)", f"shape {shape}{hint}")
    # A single channel at the end is left to the network: signals have this shape as well.
    if channels_last(shape[1:]) and shape[-1] == 3:
        raise fail("images", "a batch (B, C, H, W)", f"shape {shape}, channels last; use images.permute(0, 3, 1, 2)")
    if not x.is_floating_point():
        hint = "" if x.is_complex() or x.dtype == torch.bool else "; divide integer pixels by 255 (uint8) or 65535"
        raise fail("images", f"a floating dtype with values in {list(bounds)}", f"{x.dtype}{hint}")
    low, high = extent(x.detach())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise fail("images", "finite values", "NaN or infinity")
    if low < bounds[0] - _TOLERANCE or high > bounds[1] + _TOLERANCE:
        # Normalized pixels seldom exceed 3, and are negative somewhere.
        whole = low >= bounds[0] and high > 3
        hint = (
            f"divide by {255 if high < 256 else 65535}"
            if whole
            else "normalization belongs in Classifier(mean=…, std=…)"
        )
        raise fail("images", f"values in [{bounds[0]:g}, {bounds[1]:g}]", f"[{low:.4g}, {high:.4g}]; {hint}")


def wrong_channels(error: RuntimeError, x: Tensor) -> ValueError | None:
    """Return what to tell of a network's error where its first layer takes images of another number of channels."""
    found = _CHANNELS.search(str(error))
    if found is None or int(found[2]) != x.shape[1]:
        return None
    hint = "; use images.permute(0, 3, 1, 2)" if channels_last(tuple(x.shape[1:])) else ""
    if (found[1], found[2]) == ("3", "1"):
        hint = "; images.expand(-1, 3, -1, -1) repeats a gray channel"
    expected = f"(C, H, W) with {found[1]} channels, as the network takes"
    return fail("images", expected, f"{tuple(x.shape[1:])}{hint}")


def channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether the shape of an image looks like (H, W, C) with one or three channels, not like (C, H, W)."""
    return shape[-1] in (1, 3) and min(shape[0], shape[1]) > 4


def target(value: Any, x: Tensor, name: str = "target") -> Tensor:
    """Return class indices as int64 (B,) on the device of `x`; an int stands for every image."""
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise fail(name, "integer class indices", repr(value)[:80]) from None
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        whole = value.dtype == torch.bool or (value.is_floating_point() and bool((value == value.round()).all()))
        hint = "; convert with .long()" if whole and value.ndim < 2 else ""
        raise fail(name, "integer class indices", f"{value.dtype}{hint}")
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


def are_no_logits(values: Tensor) -> bool:
    """Return whether rows are probabilities other than ones and zeros, which may be a simple network's logits."""
    return are_probabilities(values) and bool(((values > 0) & (values < 1)).any())


def logits(values: Tensor) -> None:
    """Raise where a network's output (B, K) is probabilities, whose softmax says little.

    Rows of ones and zeros alone may be the logits of a network as simple as that.
    """
    if are_no_logits(values):
        raise fail("net", "logits", "probabilities (non-negative rows that sum to 1): leave its softmax out")
