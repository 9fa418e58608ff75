"""Temporary changes, and their way back: a network's modes, flags, lock and shards, and PyTorch's precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from threading import Lock, RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, backends, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    """Lock a network for this thread while the body runs; several classifiers may wrap the same network.

    Raises:
        RuntimeError: another thread holds the lock.
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


def set_modes(modes: Iterable[tuple[nn.Module, bool]], every: bool | None = None) -> None:
    """Set each module's own mode, or `every` as the mode of all, parents before children.

    A module that overrides `train` is switched by it; of others only `training` is set, as `nn.Module.train` would set
    all children too. Only modes that differ are set, because setting an attribute of a module takes many times as long
    as reading it. The attribute `sets_mode_alone` marks an override that does nothing else to the module.
    """
    for module, own_mode in modes:
        mode = own_mode if every is None else every
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
        set_modes(modes, every=False)
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


_SHARDED = "set_reshard_after_forward"  # what classes get from `fully_shard` (FSDP2)


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP2 shards the parameters of a module, or of a part of it."""
    return any(hasattr(type(part), _SHARDED) for part in module.modules())


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run the body with the parameters of modules that FSDP2 sharded (`fully_shard`) gathered, and shard them again.

    FSDP's own hooks are taken off meanwhile, so no pass in the body communicates and processes may make different
    numbers of passes. (With the hooks, each pass is noted for the next backward's prefetching, which would then differ
    between processes.) All processes enter and leave together. Nested use has no effect.
    """
    with ExitStack() as stack:
        sharded: Any
        for sharded in modules:
            if not hasattr(type(sharded), _SHARDED):
                continue
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
    """Return whether a network computes the same logits for images in channels-last memory format.

    Code that reshapes with `view` raises then, and code that reads strides may compute something else.
    """
    try:
        # Copies: a network may change its input in place.
        outputs = [net(images.clone(memory_format=order)) for order in (torch.contiguous_format, torch.channels_last)]
        plain, last = map(logits_of, outputs)
        return torch.allclose(plain.float(), last.float(), rtol=1e-3, atol=1e-3 * float(plain.float().abs().max()))
    except Exception:
        return False  # an error that is not about memory comes again in the pass itself


_cudnn: Any = backends.cudnn
_mkldnn: Any = backends.mkldnn
_GPU = (_cudnn.conv, _cudnn.rnn, backends.cuda.matmul)
_CPU = (_mkldnn.conv, _mkldnn.rnn, _mkldnn.matmul)

# PyTorch has two interfaces for these settings: the older one (None where a user mixed both, so that it cannot be
# read) and one precision for each operator.
_Settings = tuple[tuple[bool, str] | None, Sequence[str]]
_lock = Lock()
_stack: list[str] = []  # the precisions of the bodies that are running, of all threads: the settings are global
_user_settings: _Settings = (None, ())


def _read() -> _Settings:
    try:
        older = (_cudnn.allow_tf32, torch.get_float32_matmul_precision())
    except RuntimeError:
        older = None
    return older, tuple(map(attrgetter("fp32_precision"), (*_GPU, *_CPU)))


def _write(older: tuple[bool, str] | None, precisions: Sequence[str]) -> None:
    if older is not None:
        _cudnn.allow_tf32 = older[0]
        torch.set_float32_matmul_precision(older[1])
    for operator, precision in zip((*_GPU, *_CPU), precisions, strict=True):
        operator.fp32_precision = "none"
        if operator.fp32_precision != precision:  # a setting that is inherited stays inherited
            operator.fp32_precision = precision


def _apply(precision: str) -> None:
    older = (precision == "tf32", "high" if precision == "tf32" else "highest")
    _write(older if _user_settings[0] is not None else None, [precision] * len(_GPU) + ["ieee"] * len(_CPU))


@contextmanager
def rounding_to(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute the body in full precision ("ieee"), or let GPUs round to TF32 in it; the user's settings come back.

    PyTorch lets GPUs round the factors of convolutions to TF32 (10 bits) by default, and of matrix products where a
    user asks for it. Logits then have three correct digits, and SIGMA compares scores that differ by less.

    Other threads that run meanwhile compute so as well. Afterwards PyTorch treats its TF32 default for convolutions as
    if the user had set it: a later `torch.backends.fp32_precision` does not change it,
    `torch.backends.cudnn.conv.fp32_precision` does.
    """
    global _user_settings
    with _lock:
        if not _stack:
            _user_settings = _read()
        if not _stack or _stack[-1] != precision:
            _apply(precision)
        _stack.append(precision)
    try:
        yield
    finally:
        with _lock:
            _stack.reverse()
            _stack.remove(precision)  # of equal entries, any: threads may end in another order than they began
            _stack.reverse()
            if not _stack:
                _write(*_user_settings)
            elif _stack[-1] != precision:
                _apply(_stack[-1])


full_precision = partial(rounding_to, "ieee")
tf32 = partial(rounding_to, "tf32")


def at_least_single(values: Tensor) -> Tensor:
    """Return values in float32 or float64."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def as_pixels(images: Tensor) -> Tensor:
    """Return uint8 images divided by 255 as float32, bit-identical on every device; return others unchanged."""
    if images.dtype != torch.uint8:
        return images
    # By a tensor on the device: CUDA multiplies by the reciprocal of a Python number, which rounds twice.
    return images.float() / torch.full((), 255.0, device=images.device)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let a GPU use algorithms for convolutions and attention that give the same bits each time.

    Resumable runs need this, so that a resumed run ends as an uninterrupted one. The gradients of adaptive pooling
    to sizes that do not divide the input's, and of bilinear upsampling, may still differ in their last bits.
    """
    before = _cudnn.deterministic, _cudnn.benchmark
    _cudnn.deterministic, _cudnn.benchmark = True, False
    # The memory-saving kernels add up gradients in the order in which threads finish.
    attention = sdpa_kernel(SDPBackend.MATH) if torch.cuda.is_available() else nullcontext()
    try:
        with attention:
            yield
    finally:
        _cudnn.deterministic, _cudnn.benchmark = before
