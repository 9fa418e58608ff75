"""How BatchNorm treats a batch of clean and perturbed images."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
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

_BATCH_NORM = signature(F.batch_norm)


class AuxiliaryNorms(nn.Module):
    """A second set of a classifier's BatchNorm layers, for perturbed images only (AdvProp: Xie et al., 2020).

    The second set starts as a copy. It replaces the classifier's own layers for one forward pass and updates its own
    running statistics; the classifier does not change.

    Args:
        classifier: classifier whose layers are copied.

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
        """Return the classifier's logits (B, K) with these layers in place of its own."""
        tensors = {
            f"{name}.{key}": tensor
            for name, layer in zip(self.names, self.layers, strict=True)
            for key, tensor in (*layer.named_parameters(), *layer.named_buffers())
        }
        logits: Tensor = functional_call(classifier, tensors, (images,))
        return logits


class SingleValues(TorchFunctionMode):
    """Lets BatchNorm normalize a single value per channel by its running statistics, where PyTorch raises an error.

    A layer sees a single value where it gets one pixel of one image. Its running statistics do not change. A layer
    without running statistics returns its bias.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        given = _BATCH_NORM.bind(*args, **(kwargs or {})).arguments
        values = given["input"]
        if values.numel() == values.shape[1]:
            given["training"] = False
            if given["running_mean"] is None:
                zeros = torch.zeros_like(values).flatten()
                given.update(input=0 * values, running_mean=zeros, running_var=zeros + 1)
        return F.batch_norm(**given)


def single_values(images: Tensor) -> AbstractContextManager[Any]:
    """Return the context for a pass in training mode, in which a batch of a single image does not fail."""
    return SingleValues() if len(images) == 1 else nullcontext()


def split_forward(
    classifier: Classifier, images: Tensor, changed: Tensor, auxiliary: AuxiliaryNorms | None, *, whole: bool = False
) -> Tensor:
    """Return logits (B, K), from one forward pass for clean images and one for perturbed images.

    Args:
        classifier: classifier in training mode, so that each pass has its own batch statistics.
        images: (B, C, H, W).
        changed: bool (B,), where the image is perturbed.
        auxiliary: layers for perturbed images, or None for the classifier's own.
        whole: whether layers that no image passed get a gradient of zeros, as DDP waits for one of each parameter.
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


def explain_single_value(error: BaseException) -> None:
    """Add what to do to PyTorch's error for a batch of one image, whichever module raised it."""
    if isinstance(error, ValueError) and "Expected more than 1 value per channel" in str(error):
        told = (
            "BatchNorm cannot train on one image of one pixel; drop_last=True, of the DataLoader or RobustDataModule,"
        )
        error.args = (f"{error}. {told} leaves out a last batch that is smaller than the others",)
