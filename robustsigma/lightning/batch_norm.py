"""How BatchNorm treats a batch of clean and perturbed images."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail

BatchNormPolicy = Literal["joint", "separate", "auxiliary"]


class AuxiliaryNorms(nn.Module):
    """A second set of a classifier's BatchNorm layers, for perturbed images alone (AdvProp: Xie et al., 2020).

    The classifier itself is not changed: the second set takes the place of its own for one forward pass, and updates
    its own running statistics. It starts as a copy.

    Args:
        classifier: whose layers are doubled.

    Raises:
        ValueError: it has no BatchNorm layer.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        found = {name: module for name, module in classifier.named_modules() if isinstance(module, _BatchNorm)}
        if not found:
            raise fail("net", 'BatchNorm layers, with batch_norm="auxiliary"', type(classifier.net).__name__)
        self.names = tuple(found)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in found.values())
        self._started = False

    def start(self, classifier: Classifier) -> None:
        """Copy the classifier's layers again, unless these were loaded or trained."""
        if not self._started:
            for name, layer in zip(self.names, self.layers, strict=True):
                layer.load_state_dict(classifier.get_submodule(name).state_dict())
        self._started = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._started = any(key.startswith(prefix) for key in state_dict)

    def forward(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Return the classifier's logits (B, K) with these layers in the place of its own."""
        tensors = {
            f"{name}.{key}": tensor
            for name, layer in zip(self.names, self.layers, strict=True)
            for key, tensor in (*layer.named_parameters(), *layer.named_buffers())
        }
        logits: Tensor = functional_call(classifier, tensors, (images,))
        return logits


class SingleValues(TorchFunctionMode):
    """Lets BatchNorm normalize a single value per channel by its running statistics, where PyTorch raises an error.

    A layer sees a single value where it sees one pixel of one image. Its running statistics stay as they are. A layer
    without any returns its bias, as a mean over one value leaves nothing else.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    values: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if values.numel() == values.shape[1]:
        training = False
        if mean is None or var is None:
            values = 0 * values
            mean, var = torch.zeros_like(values).flatten(), torch.ones_like(values).flatten()
    return F.batch_norm(values, mean, var, weight, bias, training, momentum, eps)


def single_values(images: Tensor) -> AbstractContextManager[Any]:
    """Return what a pass in training mode runs under, so that it may be one of a single image."""
    return SingleValues() if len(images) == 1 else nullcontext()


def split_forward(
    classifier: Classifier, images: Tensor, changed: Tensor, auxiliary: AuxiliaryNorms | None, *, whole: bool = False
) -> Tensor:
    """Return logits (B, K), clean and perturbed images in a forward pass each, the clean ones first.

    Args:
        classifier: in training mode, so that each pass has batch statistics of its own.
        images: (B, C, H, W).
        changed: bool (B,), where the image is perturbed.
        auxiliary: the layers that perturbed images go through, or None for the classifier's own.
        whole: give layers that no image went through a gradient of zeros: DDP waits for one of every parameter.
    """
    parts, order = [], []
    for kind in (False, True):
        rows = (changed == kind).nonzero()[:, 0]
        if len(rows):
            order.append(rows)
            part = images[rows]
            with single_values(part):
                parts.append(auxiliary(classifier, part) if auxiliary and kind else classifier(part))
    logits = torch.cat(parts)[torch.cat(order).argsort()]
    if whole and auxiliary is not None and len(parts) == 1:
        logits = logits + 0 * sum(p.sum() for p in (*classifier.parameters(), *auxiliary.parameters()))
    return logits
