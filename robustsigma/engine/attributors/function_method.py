"""A plain function as an attributor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.borrowed_network import borrowed, explain_in_chunks
from robustsigma.engine.attributors.layer_maps import as_values
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import key_of, states, temporary_seed


@dataclass(frozen=True)
class FunctionMethod(Attributor):
    """Explain by a function `(model, images, target) -> maps`; `benchmark` makes one of each plain function.

    The function gets the `Classifier` (images in [0, 1] in, logits out; `model.net` is the network) in eval mode and
    without parameter gradients, a copy of the images (B, C, H, W), and the classes (B,). It returns maps (B, C, H, W),
    (B, 1, H, W) or (B, H, W), a tensor or an array. Passes through the model are counted. There is no endpoint, and
    `drop` is 0.

    Args:
        function: the function.
        stochastic: whether it draws random numbers from the global generators of torch, NumPy or Python. They are
            seeded for each image and restored afterwards, so such a function is called for one image at a time, and an
            image's map does not depend on its batch.

    Raises:
        ValueError: no function; maps of another shape or that are not finite; or random numbers without `stochastic`.

    Example:
        >>> def saliency(model, images, target):
        ...     images.requires_grad_(True)
        ...     score = model(images).gather(1, target[:, None]).sum()
        ...     return torch.autograd.grad(score, images)[0].abs()
        >>> FunctionMethod(saliency)(classifier, images).heatmap()
    """

    function: Callable[..., Any]
    stochastic: bool = False  # a property in the base class

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise validation.fail("function", "a function (model, images, target) -> maps", repr(self.function)[:80])

    @property
    def _name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __repr__(self) -> str:
        return f"FunctionMethod({self._name}{', stochastic=True' if self.stochastic else ''})"

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the function's maps."""
        size = 1 if self.stochastic else classifier.chunk_size_for(images)
        with borrowed(classifier):
            return explain_in_chunks(classifier, partial(self._maps, classifier), size, images, target, logits, seeds)

    def _maps(self, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor) -> Tensor:
        name = self._name
        with temporary_seed(key_of(seeds, "function")):
            before = states()
            found = self.function(classifier, images.detach().clone(), target.clone())
            if not self.stochastic and not _equal(before, states()):
                expected = "a function without random numbers, so that an image's map does not depend on its batch"
                hint = f"FunctionMethod({name}, stochastic=True) seeds it for each image"
                raise validation.fail(name, expected, f"one that draws from a global generator; {hint}")
        return as_values(found, images, f"maps of {name}")


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)
