"""A network in the hands of other people's code: its passes are counted, and it comes back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine.attributors.base import split_passes
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.precision import at_least_single


class PassCount:
    """Number of images that went forward through a network, and whose gradient came back."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def observe(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Count a pass, as a forward hook; return logits in single precision, with a graph where the images have one.

        The gradient of a network whose logits do not depend on the images is zero, not an error.
        """
        (images,) = args
        self.forwards += len(images)
        logits = at_least_single(output)
        if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
            logits = logits + 0 * images.flatten(1).sum(1, keepdim=True)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._came_back(len(images)))
        return logits

    def _came_back(self, images: int) -> None:
        self.backwards += images


Values = Callable[[Tensor, Tensor, Tensor], Tensor]


def explain_in_parts(
    classifier: Classifier, count: PassCount, values: Values, size: int, *tensors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `values` gives for images, targets and seeds, and the forward and backward passes of each image.

    Args:
        classifier: the network, borrowed.
        count: number of its passes.
        values: values of some images.
        size: most images at once; fewer where the device runs out of memory.
        tensors: images, targets and seeds.
    """

    def run(images: Tensor, target: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = count.forwards, count.backwards
        found = values(images, target, seeds)
        spent = count.forwards - before[0], count.backwards - before[1]
        forwards, backwards = (split_passes(each, len(images), images.device) for each in spent)
        return found, forwards, backwards

    parts = [classifier.chunked(run, *part) for part in zip(*(each.split(size) for each in tensors), strict=True)]
    found, forwards, backwards = (torch.cat(column) for column in zip(*parts, strict=True))
    return found, forwards, backwards


@contextmanager
def borrowed(classifier: Classifier) -> Iterator[PassCount]:
    """Let other code have the classifier in the body, and restore it afterwards, also when the body raises.

    Hooks and attributes that the code leaves on modules are removed. Inside, hooks see every pass and every value:
    compiled modules run as they are written, and nothing is changed in place.
    """
    modules = [module for module in classifier.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(vars(module), {key: _copied(value) for key, value in vars(module).items()}) for module in modules]
    data = [(parameter, parameter.data) for parameter in classifier.parameters()]
    count, compiled = PassCount(), classifier.compile_passes
    classifier.compile_passes = False
    try:
        for held, kept in before:
            held.update({key: value for key, value in _PLAIN.items() if kept.get(key)})
            held["_modules"].update({k: m._orig_mod for k, m in kept["_modules"].items() if hasattr(m, "_orig_mod")})
        classifier.register_forward_hook(count.observe)
        yield count
    finally:
        for held, kept in before:
            for key in held.keys() - kept.keys():
                del held[key]
            held.update({key: kept[key] for key in _PLAIN.keys() & kept.keys()})
            for key, value in kept.items():
                if isinstance(value, dict) and ("hooks" in key or key == "_modules"):
                    held[key].clear()  # in place, as handles of hooks refer to the dict itself
                    held[key].update(value)
        for parameter, value in data:
            parameter.data = value
        classifier.compile_passes = compiled


# Attributes of modules, with the value that lets hooks see every value: uncompiled, and not in place.
_PLAIN = {"inplace": False, "_compiled_call_impl": None}


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, dict) else value
