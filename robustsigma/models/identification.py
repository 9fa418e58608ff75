"""Which network of torchvision or timm the weights of a file belong to, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.validation import fail
from robustsigma.models.architecture import Architecture
from robustsigma.models.published_weights import TIMM, TORCHVISION
from robustsigma.models.weight_files import State, without_prefix


class _RealNumbers(TorchFunctionMode):
    """Makes sequences of numbers on the CPU where the device is meta: constructors compute sizes from them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func in (torch.arange, torch.linspace, torch.tensor) else {}
        return func(*args, **{**(kwargs or {}), **device})


def identify(state: State, name: str | None = None, classes: int = 1000) -> tuple[str, int] | None:
    """Return the name of the network that a state dict belongs to, and its number of logits, or None.

    Torchvision's networks are tried; with `name`, only that one, which may be timm's, of `classes` logits by default.
    The last layer may have any number of logits. It takes seconds: networks are built without memory for weights.

    Example:
        >>> identify(read_state("last.ckpt"))
        ('torchvision:resnet18', 5)
    """
    for found, net in _networks(name):
        own = net.state_dict()
        logits = _logits(own, without_prefix(state, own), classes)
        if logits is not None:
            return found, logits
    return None


def identified(state: State, path: object) -> tuple[str, int]:
    """Return the same for the state dict of a file, or raise ValueError."""
    found = identify(state)
    if found is None:
        expected = "weights of a network of torchvision, or --model NAME --weights FILE"
        raise fail("model", expected, f"{path}, whose tensors are those of another network")
    return found


def _networks(only: str | None) -> Iterator[tuple[str, nn.Module]]:
    import torchvision

    names = [f"{TORCHVISION}{each}" for each in torchvision.models.list_models(module=torchvision.models)]
    for name in names if only is None else [only] * only.startswith((TORCHVISION, TIMM)):
        try:
            with torch.device("meta"), _RealNumbers(), temporary_seed(0):
                net = Architecture(name).make({})
        except RuntimeError:
            continue  # its constructor reads the values of other tensors
        yield name, net


def _logits(own: Mapping[str, Any], state: Mapping[str, Tensor], classes: int) -> int | None:
    """Return the number of logits if all tensors fit, except for the first size of those of the last layer."""
    counted = {key for key in own if key.endswith("num_batches_tracked")}
    if state.keys() | counted != own.keys():
        return None
    other = [key for key in state if state[key].shape != own[key].shape]
    found = {len(state[key]) for key in other if state[key].ndim and state[key].shape[1:] == own[key].shape[1:]}
    if not other:
        return classes
    resized = len(found) == 1 and all(len(own[key]) == classes and len(state[key]) in found for key in other)
    return found.pop() if resized else None
