"""Full precision in network passes, whatever PyTorch is set to, and the same bits each time on a GPU.

PyTorch lets GPUs round the factors of convolutions to TF32 (10 bits) by default, and of matrix products where a user
asks for it. Logits then have three correct digits, and SIGMA compares scores that differ by less.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, backends
from torch.nn.attention import SDPBackend, sdpa_kernel

_cudnn: Any = backends.cudnn
_mkldnn: Any = backends.mkldnn
_GPU = (_cudnn.conv, _cudnn.rnn, backends.cuda.matmul)
_CPU = (_mkldnn.conv, _mkldnn.rnn, _mkldnn.matmul)

# PyTorch has two interfaces for these settings: the older one (None where a user mixed both, so that it cannot be
# read) and one precision for each operator.
_Settings = tuple[tuple[bool, str] | None, Sequence[str]]
_lock = threading.Lock()
_stack: list[str] = []  # the precisions of the bodies that are running, of all threads: the settings are global
_users: _Settings = (None, ())


def _read() -> _Settings:
    try:
        older = (_cudnn.allow_tf32, torch.get_float32_matmul_precision())
    except RuntimeError:
        older = None
    return older, [each.fp32_precision for each in (*_GPU, *_CPU)]


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
    _write(older if _users[0] is not None else None, [precision] * len(_GPU) + ["ieee"] * len(_CPU))


@contextmanager
def _rounding_to(precision: str) -> Iterator[None]:
    global _users
    with _lock:
        if not _stack:
            _users = _read()
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
                _write(*_users)
            elif _stack[-1] != precision:
                _apply(_stack[-1])


def at_least_single(values: Tensor) -> Tensor:
    """Return values in float32 or float64."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def as_pixels(images: Tensor) -> Tensor:
    """Return images in [0, 1]: of uint8, 255ths as float32 with the same bits on every device; others as they are."""
    if images.dtype != torch.uint8:
        return images
    # By a tensor on the device: CUDA multiplies by the reciprocal of a Python number, which rounds twice.
    return images.float() / torch.full((), 255.0, device=images.device)


def full_precision() -> AbstractContextManager[None]:
    """Compute the body in full precision; the user's settings come back after it.

    Afterwards PyTorch treats its TF32 default for convolutions as if the user had set it: a later
    `torch.backends.fp32_precision` does not change it, `torch.backends.cudnn.conv.fp32_precision` does.
    """
    return _rounding_to("ieee")


def tf32() -> AbstractContextManager[None]:
    """Let GPUs round to TF32 in the body, also in other threads that run meanwhile."""
    return _rounding_to("tf32")


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
