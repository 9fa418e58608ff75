"""Run other people's attribution code on a network, count its passes, and restore the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine.attributors.base import Attribution, single_point_result, split_passes
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import at_least_single
from robustsigma.engine.scores import target_score


def explain_in_chunks(
    classifier: Classifier,
    values: Callable[[Tensor, Tensor, Tensor], Tensor],
    size: int,
    images: Tensor,
    target: Tensor,
    logits: Tensor,
    seeds: Tensor,
) -> Attribution:
    """Return the result of other code for some images, with its passes; there is no endpoint, and `drop` is 0.

    Args:
        classifier: the network, borrowed.
        values: from images, targets and seeds to values (B, C, H, W).
        size: most images at once; fewer where the device runs out of memory.
        images: (B, C, H, W).
        target: (B,).
        logits: (B, K) of the images.
        seeds: (B,).
    """

    def run(images: Tensor, target: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before = classifier.forwards, classifier.backwards
        found = values(images, target, seeds)
        spent = classifier.forwards - before[0], classifier.backwards - before[1]
        forwards, backwards = (split_passes(each, len(images), images.device) for each in spent)
        return found, forwards, backwards

    rows = zip(*(each.split(size) for each in (images, target, seeds)), strict=True)
    parts = [classifier.chunked(run, *part) for part in rows]
    found, forwards, backwards = (torch.cat(column) for column in zip(*parts, strict=True))
    score = target_score(logits, target, "logit")
    result = single_point_result(found.to(images.dtype), target, images, score, passes=(1, 0))
    return replace(result, forwards=1 + forwards, backwards=backwards)


def _widened(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Return logits in single precision, with a graph where the images have one, as a forward hook.

    The gradient of a network whose logits do not depend on the images is zero, not an error.
    """
    (images,) = args
    logits = at_least_single(output)
    if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
        return logits + 0 * images.flatten(1).sum(1, keepdim=True)
    return logits


@contextmanager
def borrowed(classifier: Classifier) -> Iterator[None]:
    """Let other code have the classifier in the body, and restore it afterwards, also when the body raises.

    Hooks and attributes that the code leaves on modules are removed. Inside, hooks see every pass and every value:
    compiled modules run as they are written, and nothing is changed in place.
    """
    modules = [module for module in classifier.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(vars(module), {key: _copied(value) for key, value in vars(module).items()}) for module in modules]
    data = [(parameter, parameter.data) for parameter in classifier.parameters()]
    compiled = classifier.compile_passes
    classifier.compile_passes = False
    try:
        for held, kept in before:
            held.update({key: value for key, value in _PLAIN.items() if kept.get(key)})
            held["_modules"].update({k: m._orig_mod for k, m in kept["_modules"].items() if hasattr(m, "_orig_mod")})
        classifier.register_forward_hook(_widened)
        yield
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
