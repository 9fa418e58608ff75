"""A layer's representation of images, seen through the classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier, at_least_single


class _Tap(nn.Module):
    """Returns logits, followed by the representation, or by minus its squared distance to each reference."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.references: Tensor | None = None
        self.caught: Tensor | None = None

    def catch(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep a layer's first input; of several layers or calls the last one's stays."""
        self.caught = (*inputs, *named.values())[0]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        caught, self.caught = self.caught, None
        # A network without a linear layer is represented by its logits.
        features = at_least_single((logits if caught is None else caught).flatten(1))
        if len(features) != len(x):
            raise validation.fail("layer", "one whose input holds one row for each image", f"{len(features)} rows")
        if self.references is not None:
            features = -(features[:, None] - self.references.to(features)).square().sum(2)
        return torch.cat([logits.to(features), features], 1)


def layers(classifier: Classifier, layer: str | None) -> list[nn.Module]:
    """Return the named module, or all linear ones, of which the last to run is the default."""
    named = dict(classifier.net.named_modules())
    if layer is None:
        return [module for module in named.values() if isinstance(module, nn.Linear)]
    if layer not in named:
        raise validation.fail("layer", "the name of a module of the net", repr(layer))
    return [named[layer]]


@contextmanager
def negative_feature_distance(
    classifier: Classifier, layer: str | None, references: Tensor, classes: int
) -> Iterator[tuple[Classifier, Tensor]]:
    """Yield a classifier of closeness and the references' logits (R, K); hooks are gone afterwards, whatever happens.

    Its logits (B, K + R) are the classifier's own K = `classes` and, for each of the references (R, C, H, W),
    -||h(x) - h(r)||^2, where h is the input of `layer`. Call inside `frozen()`; R forward passes.
    """
    tap = _Tap(classifier)
    tapped = Classifier(tap, chunk_size=classifier.chunk_size, gradient_dtype=classifier.gradient_dtype)
    tapped.to(classifier.mean.device)  # a network without parameters does not say where it is
    hooks = [module.register_forward_pre_hook(tap.catch, with_kwargs=True) for module in layers(classifier, layer)]
    try:
        seen = tapped.logits(references)
        tap.references = seen[:, classes:]
        yield tapped, seen[:, :classes]
    finally:
        for hook in hooks:
            hook.remove()
