"""Attention weights of a vision transformer, read while it runs and without touching what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustsigma.engine.validation import fail

# Called once for each attention block with queries, already scaled, and keys (B, heads, N, D).
Visit = Callable[[Tensor, Tensor], None]

_FOUND = "self-attention blocks: torch.nn.MultiheadAttention, or modules with `qkv`, `num_heads` and `scale`"


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _watch_multihead(block: nn.MultiheadAttention, visit: Visit) -> list[RemovableHandle]:
    """Compute queries and keys from what the block is given: its own weights are lost in fused kernels."""
    if not block._qkv_same_embed_dim or block.bias_k is not None or block.add_zero_attn:
        raise fail("net", "attention over its own tokens only", "MultiheadAttention with other keys or extra tokens")

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query, key = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key")))
        masks = (*args[3:4], *args[5:6], kwargs.get("key_padding_mask"), kwargs.get("attn_mask"))
        if query is not key or not all(map(_plain, masks)):
            raise fail("net", "self-attention without masks", "other keys, or a mask")
        tokens = query if block.batch_first else query.transpose(0, 1)
        width, bias = block.embed_dim, block.in_proj_bias
        both = F.linear(tokens, block.in_proj_weight[: 2 * width], None if bias is None else bias[: 2 * width])
        queries, keys = both.unflatten(2, (2, block.num_heads, block.head_dim)).permute(2, 0, 3, 1, 4)
        visit(queries * block.head_dim**-0.5, keys)

    return [block.register_forward_pre_hook(before, with_kwargs=True)]


def _watch_qkv(block: Any, visit: Visit) -> list[RemovableHandle]:
    """Take queries and keys from the block's own `qkv` (timm's layout: q, k, v, then heads)."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not all(map(_plain, (*args[1:], *kwargs.values()))):
            raise fail("net", "self-attention without masks or rotary positions", "an attention block given more")

    def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        queries, keys, _values = output.unflatten(2, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
        norms = (getattr(block, name, None) or nn.Identity() for name in ("q_norm", "k_norm"))
        queries, keys = (norm(x) for norm, x in zip(norms, (queries, keys), strict=True))
        visit(queries * block.scale, keys)

    return [block.register_forward_pre_hook(before, with_kwargs=True), block.qkv.register_forward_hook(after)]


@contextmanager
def watched(net: nn.Module, visit: Visit) -> Iterator[None]:
    """Call `visit` for every attention block that runs in the body, in the order in which they run.

    Hooks only read, and are gone afterwards, also when the body raises.

    Raises:
        ValueError: a net without attention blocks, or with attention that these weights would not describe.
    """
    handles: list[RemovableHandle] = []
    try:
        for module in net.modules():
            if isinstance(module, nn.MultiheadAttention):
                handles += _watch_multihead(module, visit)
            elif all(hasattr(module, name) for name in ("qkv", "num_heads", "scale")):
                handles += _watch_qkv(module, visit)
        if not handles:
            raise fail("net", _FOUND, "a network without any")
        yield
    finally:
        for handle in handles:
            handle.remove()


def weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Return softmax(Q K^T), (B, heads, N, N), rows summing to 1; at least in float32."""
    return (queries @ keys.transpose(2, 3)).to(torch.promote_types(queries.dtype, torch.float32)).softmax(3)
