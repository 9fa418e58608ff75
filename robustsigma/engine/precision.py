"""What PyTorch may choose by itself in single precision, and what is lost by it: small differences, and equal bits.

On GPUs PyTorch lets convolutions round their factors to TF32 (10 bits) unless told otherwise, and matrix products,
there and on CPUs, where a user asks for it. Logits are then right to three digits, which the differences that SIGMA's
walk goes by are not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import backends
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["ieee", "tf32"]

_cudnn: Any = backends.cudnn
_mkldnn: Any = backends.mkldnn
_GPU = (_cudnn.conv, _cudnn.rnn, backends.cuda.matmul)
_CPU = (_mkldnn.conv, _mkldnn.rnn, _mkldnn.matmul)
# The settings are the process's: of several threads the first saves the user's, and the last puts them back.
_lock = threading.Lock()
_within = 0


@dataclass(frozen=True)
class _Settings:
    """PyTorch's own, in both of its ways to say them; the older can't be read where a user mixed the two."""

    operators: tuple[str, ...]
    convolutions: bool | None
    products: str | None

    @classmethod
    def now(cls) -> _Settings:
        convolutions = products = None
        try:
            convolutions = _cudnn.allow_tf32
            products = torch.get_float32_matmul_precision()
        except RuntimeError:
            pass
        return cls(tuple(each.fp32_precision for each in (*_GPU, *_CPU)), convolutions, products)

    def restore(self) -> None:
        if self.convolutions is not None:
            _cudnn.allow_tf32 = self.convolutions
        if self.products is not None:
            torch.set_float32_matmul_precision(self.products)
        for operator, precision in zip((*_GPU, *_CPU), self.operators, strict=True):
            operator.fp32_precision = "none"
            if operator.fp32_precision != precision:  # what is inherited stays so
                operator.fp32_precision = precision


_users: _Settings | None = None
_now: Precision = "ieee"


def _set(precision: Precision) -> None:
    """Set both ways alike, so that code inside may read either, unless the user has mixed the two."""
    global _now
    assert _users is not None
    _now = precision
    if _users.convolutions is not None:
        _cudnn.allow_tf32 = precision == "tf32"
    if _users.products is not None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    for operators, wanted in ((_GPU, precision), (_CPU, "ieee")):
        for operator in operators:
            operator.fp32_precision = wanted


@contextmanager
def _at(precision: Precision) -> Iterator[None]:
    global _within, _users
    with _lock:
        if _within == 0:
            _users = _Settings.now()
        before: Precision = _now if _within > 0 else "ieee"
        _set(precision)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within > 0:
                _set(before)
            else:
                assert _users is not None
                _users.restore()


def full_precision() -> AbstractContextManager[None]:
    """Compute in the body without rounding to TF32 or below, whatever the user has set, which then comes back.

    One thing can't: that convolutions have their TF32 by default is then as if the user had set it, so that
    `torch.backends.fp32_precision`, set later, doesn't reach them; `torch.backends.cudnn.conv.fp32_precision` does.
    """
    return _at("ieee")


def tf32() -> AbstractContextManager[None]:
    """Round to TF32 on GPUs in the body, and no further; other threads' passes meanwhile too."""
    return _at("tf32")


def rounds(device: torch.device) -> bool:
    """Return whether convolutions on a device round what they multiply, as things are."""
    return torch.is_autocast_enabled(device.type) or (device.type == "cuda" and _cudnn.conv.fp32_precision == "tf32")


@contextmanager
def same_bits() -> Iterator[None]:
    """Let a GPU compute convolutions and attention in the body by algorithms that give the same bits each time.

    Runs that may be interrupted ask for it, so that what goes on ends as what never stopped. Adaptive pooling to sizes
    that do not divide the input's, and bilinear enlarging, may still differ in their gradients' last bits.
    """
    before = _cudnn.deterministic, _cudnn.benchmark
    _cudnn.deterministic, _cudnn.benchmark = True, False
    # The gradients of the memory-saving kernels are sums in the order in which threads come to them.
    attention = sdpa_kernel(SDPBackend.MATH) if torch.cuda.is_available() else nullcontext()
    try:
        with attention:
            yield
    finally:
        _cudnn.deterministic, _cudnn.benchmark = before
