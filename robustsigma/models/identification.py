"""Which of torchvision's networks the weights of a file belong to, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.validation import fail
from robustsigma.models.architecture import Architecture
from robustsigma.models.published_weights import TORCHVISION
from robustsigma.models.weight_files import State, without_prefix

_CLASSES = 1000  # logits of torchvision's networks by default


def identify(state: State, name: str | None = None) -> tuple[str, int] | None:
    """Return the name of the network that a state dict belongs to, and its number of logits, or None.

    With `name`, only that network is tried. The last layer may have any number of logits. It takes seconds: networks
    are built without memory for weights. RegNets cannot be built so and are not recognized.

    Example:
        >>> identify(read_state("last.ckpt"))
        ('torchvision:resnet18', 5)
    """
    for found, net in _networks(name):
        own = net.state_dict()
        classes = _logits(own, without_prefix(state, own))
        if classes is not None:
            return found, classes
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

    for name in (f"{TORCHVISION}{each}" for each in torchvision.models.list_models(module=torchvision.models)):
        if only in (None, name):
            try:
                with torch.device("meta"), temporary_seed(0):
                    net = Architecture(name).make({})
            except NotImplementedError:
                continue
            yield name, net


def _logits(own: Mapping[str, Any], state: Mapping[str, Tensor]) -> int | None:
    """Return the number of logits if all tensors fit, except for the first size of those of the last layer."""
    counted = {key for key in own if key.endswith("num_batches_tracked")}
    if state.keys() | counted != own.keys():
        return None
    other = [key for key in state if state[key].shape != own[key].shape]
    found = {len(state[key]) for key in other if state[key].ndim and state[key].shape[1:] == own[key].shape[1:]}
    if not other:
        return _CLASSES
    resized = len(found) == 1 and all(len(own[key]) == _CLASSES and len(state[key]) in found for key in other)
    return found.pop() if resized else None
