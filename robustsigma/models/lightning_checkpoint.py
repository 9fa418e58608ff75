"""A user's own `LightningModule` from its checkpoint, read without running code that nobody allowed."""

from __future__ import annotations

import argparse
import functools
import inspect
import operator
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from robustsigma.engine.validation import fail, near
from robustsigma.models.weight_files import not_readable, quiet_unpickling

# What hyperparameters hold beside plain values. An optimizer's partial calls nothing until somebody calls it.
_PLAIN = (functools.partial, argparse.Namespace, set, frozenset, slice, range, pathlib.PosixPath, pathlib.Path)
_PARTS = (nn.Module, Optimizer, LRScheduler)


def is_lightning(kind: Any) -> bool:
    """Return whether this is a LightningModule's class, of `pytorch_lightning` or `lightning`."""
    return inspect.isclass(kind) and issubclass(kind, nn.Module) and hasattr(kind, "load_from_checkpoint")


def load_checkpoint(
    kind: Any, path: str, arguments: Mapping[str, Any], *, strict: bool, allow: Sequence[str] = ()
) -> nn.Module:
    """Return a LightningModule of class `kind` from its checkpoint, by its own `load_from_checkpoint`.

    `arguments` of the constructor replace the hyperparameters in the checkpoint. `strict`: it must hold all weights and
    no others. `allow`: dotted paths of classes and functions that it may hold, such as those of hyperparameters; others
    are a ValueError, and nothing of them is run.
    """
    if not Path(path).is_file():
        raise fail("weights", "an existing checkpoint", path)
    try:
        with quiet_unpickling():
            held = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # the unpickler may raise anything for a file that is no checkpoint
        raise not_readable("weights", path, error) from error
    found = {name: _resolved(name, allow) for name in held}
    refused = sorted(name for name, value in found.items() if value is None)
    if refused:
        told = f"{path}, which holds {', '.join(refused[:3])}; add --allow {refused[0]} if you trust it"
        raise fail("weights", "a checkpoint of tensors, plain values and code that is allowed", told)
    try:
        with quiet_unpickling(), torch.serialization.safe_globals([(value, name) for name, value in found.items()]):
            module: nn.Module = kind.load_from_checkpoint(
                path, map_location="cpu", strict=strict, weights_only=True, **arguments
            )
    except Exception as error:  # the user's constructor may raise anything
        told = f"{path} ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        expected = f"a checkpoint of {kind.__name__}; `arguments` gives what the constructor lacks"
        raise fail("weights", expected, told) from error
    return module.eval()


def _resolved(name: str, allow: Sequence[str]) -> Any:
    """Return the class or function that a checkpoint names, or None if it may not hold it."""
    known = {f"{each.__module__}.{each.__qualname__}": each for each in _PLAIN}
    if name in known:
        return known[name]
    allowed = any(name == each or name.startswith(f"{each}.") for each in allow)
    if not allowed and not name.startswith("torch."):
        return None
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None
    own = inspect.isclass(found) and f"{found.__module__}.{found.__qualname__}" == name and issubclass(found, _PARTS)
    return found if allowed or own else None


def part(module: nn.Module, name: str | None, argument: str = "net") -> nn.Module:
    """Return the network in a module: its attribute, such as "net" or "ema.module", or the module itself.

    ValueError, naming `argument`: no such network, or a module itself that has no `forward`.
    """
    children = ", ".join(child for child, _ in module.named_children()) or "none"
    if name is None:
        forward = getattr(type(module).forward, "__qualname__", "")
        if forward in (nn.Module.forward.__qualname__, "LightningModule.forward"):
            got = f"None, and {type(module).__name__} has no `forward`"
            raise fail(argument, f"the attribute that is the network: {children}", got)
        return module
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        got = f"{name!r}{near(name, [each for each, _ in module.named_modules() if each])}"
        raise fail(argument, f"an attribute of {type(module).__name__} that is a network: {children}", got)
    return found


def normalization(module: nn.Module, net: nn.Module, shape: tuple[int, int, int]) -> Any:
    """Return mean and std of the `Normalize` that a module has, or None; 0 and 1 if the network applies it itself."""
    holders = [*module.modules(), *vars(module).values()]
    composed = [getattr(each, "transforms", None) for each in holders]  # of torchvision's Compose
    held = [*holders, *(each for several in composed if isinstance(several, (list, tuple)) for each in several)]
    layers = [each for each in held if type(each).__name__ == "Normalize" and hasattr(each, "std")]
    ran: list[Any] = []
    handles = [each.register_forward_hook(lambda *_: ran.append(1)) for each in layers if isinstance(each, nn.Module)]
    try:
        if handles:
            with torch.no_grad():
                net(torch.zeros(1, *shape))
    except Exception:  # reported where the logits are counted
        ran.clear()
    finally:
        for handle in handles:
            handle.remove()
    if ran:
        return (0.0,), (1.0,)
    found = {tuple(tuple(torch.as_tensor(v).flatten().tolist()) for v in (each.mean, each.std)) for each in layers}
    if len(found) > 1:
        raise fail("mean and std", f"one Normalize in {type(module).__name__}, or both stated", f"{len(found)}")
    return found.pop() if found else None
