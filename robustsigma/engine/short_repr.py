"""Short text forms of result objects, which hold tensors of thousands of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


class ShortRepr:
    """Base class of dataclasses of results: `repr` shows a line for each field, and tensors by shape and range.

    Subclasses are decorated with `@dataclass(repr=False)`.
    """

    def __repr__(self) -> str:
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        lines = [f"  {name}: {_shown(value)}" for name, value in found.items() if value is not None]
        lines += [f"  {name}: {text}" for name, text in self._notes().items()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    def _notes(self) -> dict[str, str]:
        """Return further lines, numbers that are computed from the fields."""
        return {}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) + "}"
    if not isinstance(value, Tensor):
        return " ".join(repr(value).split())[:200]
    text = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    known = value.detach()[~value.isnan()]
    if known.numel() == 0:
        return text if value.numel() == 0 else f"{text}, all NaN"
    if value.dtype.is_complex:
        return text
    if str(value.dtype) == "torch.bool":
        return f"{text}, {known.double().mean().item():.0%} True"
    missing = "" if len(known) == value.numel() else f", {1 - len(known) / value.numel():.0%} NaN"
    return f"{text} in [{known.min().item():.4g}, {known.max().item():.4g}]{missing}"
