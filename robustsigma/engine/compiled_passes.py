"""Frozen passes by `torch.compile`, on a GPU as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine.network_state import logits_of


def compiled(net: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function from normalized images to logits that compiles itself for each size of a batch."""

    def logits(images: Tensor) -> Any:
        return logits_of(net(images))

    return torch.compile(logits, mode="reduce-overhead", dynamic=False)


def run_compiled(logits: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Return the logits of a batch that is padded to one of a few sizes, for each of which code is made once."""
    count = len(images)
    padded = F.pad(images, (0, 0) * 3 + (0, _padded_size(count) - count))
    # One code for each size, with and without a gradient; PyTorch's limit is 8.
    with torch._dynamo.config.patch(recompile_limit=64):
        # A copy, because the next pass of a CUDA graph writes to the same memory.
        return logits(padded)[:count].clone()


def _padded_size(count: int) -> int:
    """Return a power of two, from 512 on a multiple of 512."""
    return 1 << (count - 1).bit_length() if count <= 512 else -(-count // 512) * 512
