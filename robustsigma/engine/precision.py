"""What PyTorch may choose by itself in single precision, and what is lost by it: small differences, and equal bits.

On GPUs PyTorch lets convolutions round their factors to TF32 (10 bits) unless told otherwise, and matrix products,
there and on CPUs, where a user asks for it. Logits are then right to three digits, which the differences that SIGMA's
walk goes by are not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import backends

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
            if operator.fp32_precision != precision:  # what is inherited stays so
                operator.fp32_precision = precision


_users: _Settings | None = None


def _set(precision: Precision) -> None:
    """Set both ways alike, so that code inside may read either."""
    assert _users is not None
    if _users.convolutions is not None:
        _cudnn.allow_tf32 = precision == "tf32"
    if _users.products is not None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    for operators, wanted in ((_GPU, precision), (_CPU, "ieee")):
        for operator in operators:
            operator.fp32_precision = wanted


@contextmanager
def same_bits() -> Iterator[None]:
    """Let cuDNN choose in the body only among algorithms that give the same bits each time.

    Runs that may be interrupted ask for it: what goes on then ends as what never stopped.
    """
    before = _cudnn.deterministic
    _cudnn.deterministic = True
    try:
        yield
    finally:
        _cudnn.deterministic = before


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in the body without rounding to TF32 or below, whatever the user has set, which then comes back."""
    global _within, _users
    with _lock:
        if _within == 0:
            _users = _Settings.now()
            _set("ieee")
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                assert _users is not None
                _users.restore()


@contextmanager
def tf32() -> Iterator[None]:
    """Round to TF32 on GPUs in the body, and no further; other threads' passes meanwhile too."""
    with full_precision():
        with _lock:
            _set("tf32")
        try:
            yield
        finally:
            with _lock:
                _set("ieee")
