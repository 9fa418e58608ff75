"""How BatchNorm treats a batch of clean and perturbed images."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

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

    def restart(self, classifier: Classifier) -> None:
        """Copy the classifier's layers again."""
        for name, layer in zip(self.names, self.layers, strict=True):
            layer.load_state_dict(classifier.get_submodule(name).state_dict())

    def forward(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Return the classifier's logits (B, K) with these layers in the place of its own."""
        tensors = {
            f"{name}.{key}": tensor
            for name, layer in zip(self.names, self.layers, strict=True)
            for key, tensor in (*layer.named_parameters(), *layer.named_buffers())
        }
        logits: Tensor = functional_call(classifier, tensors, (images,))
        return logits


def apart(
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
            second = auxiliary if kind else None
            parts.append(classifier(images[rows]) if second is None else second(classifier, images[rows]))
    logits = torch.cat(parts)[torch.cat(order).argsort()]
    if whole and auxiliary is not None and len(parts) == 1:
        logits = logits + 0 * sum(p.sum() for p in (*classifier.parameters(), *auxiliary.parameters()))
    return logits
