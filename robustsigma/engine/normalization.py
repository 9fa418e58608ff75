"""The mean and standard deviation of a classifier's images: checked, and replaced by those of loaded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.validation import fail


def statistic(name: str, values: Sequence[float] | None, positive: bool) -> Tensor:
    """Return a mean, or a standard deviation if `positive`, as a tensor (C, 1, 1); None is 0 or 1."""
    if values is None:
        values = (1.0,) if positive else (0.0,)
    try:
        tensor = torch.as_tensor(values, dtype=torch.float32).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise fail(name, "numbers, one per channel", repr(values)[:80]) from None
    if len(tensor) == 0 or not torch.isfinite(tensor).all() or (positive and bool((tensor <= 0).any())):
        raise fail(name, f"{'positive' if positive else 'finite'} numbers, one per channel", repr(values))
    if bool((tensor > (10 if positive else 1)).any()):  # no pixel in [0, 1] has such a mean or standard deviation
        raise fail(name, "numbers for images in [0, 1]", f"{values!r}; divide mean and std of images in 0..255 by 255")
    return tensor.reshape(-1, 1, 1)


def prepare_loading(module: nn.Module, state: Mapping[str, Any], prefix: str, given: Mapping[str, bool]) -> None:
    """Give a module's statistics the number of channels that they have in a state dict.

    Warns where they replace other values that the user gave.

    Args:
        module: the module, with buffers of the names in `given`.
        state: the state dict.
        prefix: prefix of the module's names in it.
        given: whether the user gave a statistic, by its name.
    """
    for name, by_user in given.items():
        stored, own = state.get(prefix + name), getattr(module, name)
        if not isinstance(stored, Tensor) or stored.shape[1:] != (1, 1):
            continue
        if by_user and not own.is_meta and (stored.shape != own.shape or not torch.allclose(stored.to(own), own)):
            validation.warn(f"{name}: the loaded weights replace what was given to the Classifier")
        setattr(module, name, own.new_empty(stored.shape))
