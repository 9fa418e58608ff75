"""What `TorchAttack` knows of the package torchattacks: its attacks, their arguments, and the model they attack."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import at_least_single
from robustsigma.engine.perturbations.projections import Norm

SPELLINGS: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}  # theirs and ours

_WRAPPERS = ("LGV", "MultiAttack")  # take attacks or a loader as arguments, which no YAML file can hold
_L2 = ("CW", "DeepFool", "EADEN", "PGDL2", "PGDRSL2")
_COLOR = ("PIFGSM", "PIFGSMPP", "TIFGSM")  # their kernels have three channels
_TARGETS, _STEPS = 9, 100  # of AutoAttack as Croce and Hein (2020) run it
_CLASSES = {"APGDT": 4, "JSMA": 10}  # a ratio of the four highest logits; a target of (label + 1) modulo 10


class Victim(nn.Module):
    """The classifier as torchattacks sees it: images in [0, 1] to logits, without weights or modes.

    torchattacks reads the device from the first parameter and calls .eval() and .train(). So the classifier is not a
    submodule, and the only parameter is empty.
    """

    def __init__(self, classifier: Classifier | None, device: torch.device) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.hidden = (classifier,)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) in the images' dtype; at most as many images at once as the classifier allows."""
        (classifier,) = self.hidden
        assert classifier is not None
        if not (images.requires_grad and torch.is_grad_enabled()):
            return classifier.logits(images).to(images.dtype)
        logits = self._graph(classifier, images)
        if logits is None or not logits.requires_grad:
            logits = _Recompute.apply(images, classifier)
        return at_least_single(logits).to(images.dtype)

    @staticmethod
    def _graph(classifier: Classifier, images: Tensor) -> Tensor | None:
        """Return logits with their graph, or None where the graph must not be kept.

        It does not fit a batch that needs chunks, and passes in lower precision would change the logits.
        """
        if len(images) > classifier.chunk_size_for(images) or classifier.gradient_dtype is not None:
            return None
        try:
            logits: Tensor = classifier(_Contiguous.apply(images))
        except torch.OutOfMemoryError:
            return None
        return logits


class _Contiguous(torch.autograd.Function):
    """Return the images; their gradients become contiguous, since torchattacks calls .view() on them."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


class _Recompute(torch.autograd.Function):
    """Return logits without keeping their graph: the backward pass runs the network again, in chunks.

    This costs one more forward pass for each gradient. A network without gradients gets a zero gradient.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, classifier: Classifier) -> Tensor:
        ctx.save_for_backward(images)
        ctx.classifier = classifier
        return classifier.logits(images)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        (images,) = ctx.saved_tensors
        with torch.enable_grad():
            _, gradient = ctx.classifier.gradient_of(lambda z, w: (z * w).sum(), images, weights[0])
        return gradient.contiguous(), None


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError("TorchAttack needs torchattacks: pip install 'robustsigma[attacks]'") from error
    return torchattacks


def names() -> tuple[str, ...]:
    """Return the attacks that `TorchAttack` can run, sorted."""
    return tuple(sorted(set(_library().__all__) - set(_WRAPPERS)))


def _accepted(name: str) -> list[str]:
    signature = inspect.signature(getattr(_library(), name).__init__)
    accepted = [key for key in signature.parameters if key not in ("self", "model")]
    return [*accepted, "steps"] if name == "AutoAttack" else accepted


def _radius_name(name: str) -> str | None:
    return next((key for key in ("eps", "max_epsilon") if key in _accepted(name)), None)


def check_arguments(name: str, arguments: Mapping[str, Any], eps: float | None) -> None:
    """Raise ValueError unless the attack exists and takes these arguments, and `eps` is given once."""
    validation.choice("name", name, names())
    accepted = _accepted(name)
    unknown = [key for key in arguments if key not in accepted]
    if unknown:
        raise validation.fail("arguments", f"of {name}: {', '.join(accepted) or 'none'}", ", ".join(unknown))
    own = _radius_name(name)
    if eps is not None and own is not None and own in arguments:
        raise validation.fail("eps", f"to be given once, here or as {own} in arguments", f"{eps} and {arguments[own]}")


def check_problem(name: str, arguments: Mapping[str, Any], channels: int, classes: int) -> None:
    """Raise ValueError if the attack cannot run on such images or on so few classes."""
    asked = arguments.get("n_classes", 2)
    validation.integer("n_classes", asked, 2, classes)
    if name in _COLOR and channels != 3:
        raise validation.fail("images", f"3 channels for {name}", channels)
    wanted = _CLASSES.get(name, 2)
    if name == "AutoAttack" and arguments.get("version") != "rand":
        wanted = _CLASSES["APGDT"]
    elif name == "AutoAttack" or arguments.get("loss") == "dlr":
        wanted = 3  # logits in the difference-of-logits ratio
    if classes < wanted:
        raise validation.fail("net", f"at least {wanted} classes for {name} of torchattacks", classes)


def build(
    name: str,
    victim: Victim,
    arguments: Mapping[str, Any],
    eps: float | None,
    *,
    classes: int,
    seed: int,
    norm: Norm | None = None,
) -> Any:
    """Return the attack on a victim, with the number of targets, the seed, the radius and its norm filled in.

    torchattacks uses `n_classes` only for the number of targets, `n_classes` - 1 classes of the next highest logits.
    """
    accepted, given = _accepted(name), dict(arguments)
    own = _radius_name(name)
    if eps is not None and own is not None:
        given[own] = eps
    theirs = next((spelling for spelling, ours in SPELLINGS.items() if ours == norm), None)
    for key, value in (("n_classes", min(classes, _TARGETS + 1)), ("seed", seed), ("norm", theirs)):
        if key in accepted and value is not None:
            given.setdefault(key, value)
    steps = given.pop("steps", _STEPS) if name == "AutoAttack" else None
    try:
        attack = getattr(_library(), name)(victim, **given)
    except (TypeError, ValueError, AttributeError) as error:
        raise validation.fail("arguments", f"valid arguments of {name}", f"{arguments}: {error}") from error
    if steps is not None:
        validation.integer("steps", steps, 1)
        for part in attack._autoattack.attacks:
            if hasattr(part, "steps"):
                part.steps = steps
    return attack


def radius(attack: Any) -> float | None:
    """Return the radius of an attack, or None if it has none."""
    return getattr(attack, "eps", getattr(attack, "max_epsilon", None))


def norm(attack: Any) -> Norm:
    """Return the norm of an attack; "linf" also for an attack of neither norm."""
    name = getattr(attack, "norm", None)
    if isinstance(name, str):
        return "l2" if name == "L2" else "linf"
    return "l2" if type(attack).__name__ in _L2 else "linf"
