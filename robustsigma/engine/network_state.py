"""Reading and setting the state of a user's network: its modes, dtypes, lock and memory order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robustsigma.engine.precision import full_precision
from robustsigma.engine.validation import fail


def refuse_inference(tensors: Iterable[Tensor]) -> None:
    """Raise if a tensor was made in inference mode: no gradient may involve it."""
    if any(tensor.is_inference() for tensor in tensors):
        hint = "build, copy or convert the network outside of it"
        raise fail("net", "weights that can take part in gradients", f"weights made in inference mode; {hint}")


def logits_of(output: Any) -> Any:
    """Return the logits of what a network returns, which may be an object that has them as `.logits`."""
    return getattr(output, "logits", output)


def floating_dtypes(parameters: Iterable[nn.Parameter]) -> frozenset[torch.dtype]:
    """Return the dtypes of floating parameters."""
    return frozenset(parameter.dtype for parameter in parameters if parameter.is_floating_point())


_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_LOCKS_ACCESS = Lock()


@contextmanager
def locked(net: nn.Module) -> Iterator[None]:
    """Run the body while no other thread is in one for the same network, which several classifiers may wrap.

    Raises:
        RuntimeError: another thread is.
    """
    with _LOCKS_ACCESS:
        lock = _LOCKS.setdefault(net, RLock())
    if not lock.acquire(blocking=False):
        raise RuntimeError(
            "classifier: expected calls from one thread at a time for a network, got calls from two; "
            "give each thread a copy of the classifier, which copies its network"
        )
    try:
        yield
    finally:
        lock.release()


def set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Set modes, parents before children, by the modules' own `train` where they have one.

    The others are set by their attribute alone: their `train` would set every child, too. Only modes that differ
    are set, because setting an attribute of a module takes many times as long as reading it. A `train` that only
    checks is marked by its attribute `sets_mode_alone`.
    """
    for module, mode in modes:
        if module.training is not mode:
            own = getattr(module.train, "__func__", None)
            if own is nn.Module.train or hasattr(own, "sets_mode_alone"):
                module.training = mode
            else:
                try:
                    module.train(mode)
                except NotImplementedError:  # of exported networks, which have one mode
                    module.training = mode


@contextmanager
def evaluating(modules: Sequence[nn.Module], parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Run the body with modules in eval mode and parameters without gradients, and restore each one's own state.

    The body computes in full precision, and gradients of its own inputs work in it.
    """
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    flags = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        set_modes([(module, False) for module, _ in modes])
        for parameter in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad(), full_precision():
            yield
    finally:
        set_modes(modes)
        for module, mode in modes:
            if module.training is not mode:  # it was set behind the module's own `train`
                module.training = mode
        for parameter in flags:
            parameter.requires_grad_(True)


def fsdp_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """Return the modules with which `fully_shard` (FSDP2) was called."""
    return [module for module in modules if hasattr(type(module), "set_reshard_after_forward")]


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run the body with the parameters of modules that FSDP2 sharded (`fully_shard`) gathered, and shard them again.

    FSDP's own hooks are taken off meanwhile, so no pass in the body communicates and processes may make different
    numbers of passes. (With the hooks, each pass is noted for the next backward's prefetching, which would then differ
    between processes.) All processes enter and leave together. A body inside another one gathers nothing again.
    """
    with ExitStack() as stack:
        for sharded in fsdp_modules(modules):
            state, before, after = sharded._get_fsdp_state(), sharded._forward_pre_hooks, sharded._forward_hooks
            for hooks in (before, after):
                for key in [key for key, hook in hooks.items() if _owner(hook) is state]:
                    stack.callback(hooks.move_to_end, key, last=False)
                    stack.callback(hooks.__setitem__, key, hooks.pop(key))
                    if hooks is before:
                        stack.callback(sharded.reshard)
                        with torch.inference_mode(False):
                            sharded.unshard()
        yield


def _owner(hook: Any) -> Any:
    """Return the object whose method a hook is, or wraps."""
    while not hasattr(hook, "__self__") and hasattr(hook, "__wrapped__"):
        hook = hook.__wrapped__
    return getattr(hook, "__self__", None)


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module runs compiled code, by torch.compile or TorchScript."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")
    return compiled or isinstance(module, torch.jit.ScriptModule)


@torch.no_grad()
def takes_channels_last(net: nn.Module, images: Tensor) -> bool:
    """Return whether a network gives the same of images whose channels are last in memory.

    Code that reshapes with `view` raises then, and code that reads strides may compute something else.
    """
    try:
        # Copies: a network may change its input in place.
        outputs = [net(images.clone(memory_format=order)) for order in (torch.contiguous_format, torch.channels_last)]
        plain, last = map(logits_of, outputs)
        return torch.allclose(plain.float(), last.float(), rtol=1e-3, atol=1e-3 * float(plain.float().abs().max()))
    except Exception:
        return False  # an error that is not about memory comes again in the pass itself
