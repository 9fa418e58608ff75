"""Attention weights of a vision transformer, read while it runs and without touching what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


def _attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return softmax(Q K^T) V of the first image, (1, N, E)."""
    attention = weights(queries[:1], keys[:1])
    return (attention @ values[:1].to(attention.dtype)).transpose(1, 2).flatten(2)


def _check(expected: Tensor, actual: Any) -> None:
    """Raise unless a block gave what its weights say of the first image: else they do not describe it."""
    tolerance = 0.05 if isinstance(actual, Tensor) and actual.element_size() == 2 else 1e-3
    same = isinstance(actual, Tensor) and actual[:1].shape == expected.shape
    if not same or (actual[:1] - expected).abs().max() > tolerance * (expected.abs().max() + 1e-6):
        got = "attention that computes something else, such as a relative position bias, a mask or windows"
        raise fail("net", "attention blocks that compute softmax(Q K^T) V", got)


def _watch_multihead(block: nn.MultiheadAttention, visit: Visit) -> list[RemovableHandle]:
    """Compute queries and keys from what the block is given: its own weights are lost in fused kernels."""
    if not block._qkv_same_embed_dim or block.bias_k is not None or block.add_zero_attn:
        raise fail("net", "attention over its own tokens only", "MultiheadAttention with other keys or extra tokens")

    running: list[Tensor] = []  # what the block that runs is to give

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query, key = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key")))
        masks = (*args[3:4], *args[5:6], kwargs.get("key_padding_mask"), kwargs.get("attn_mask"))
        if query is not key or not all(map(_plain, masks)):
            raise fail("net", "self-attention without masks", "other keys, or a mask")
        tokens = query if block.batch_first else query.transpose(0, 1)
        every = F.linear(tokens, block.in_proj_weight, block.in_proj_bias)
        queries, keys, values = every.unflatten(2, (3, block.num_heads, block.head_dim)).permute(2, 0, 3, 1, 4)
        queries = queries * block.head_dim**-0.5
        visit(queries, keys)
        running.append(_attended(queries, keys, values))

    def after(_: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
        first = output[0] if block.batch_first else output[0].transpose(0, 1)
        expected = running.pop().to(block.out_proj.weight.dtype)
        _check(F.linear(expected, block.out_proj.weight, block.out_proj.bias), first)

    return [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]


def _watch_qkv(block: Any, visit: Visit) -> list[RemovableHandle]:
    """Take queries and keys from the block's own `qkv` (timm's layout: q, k, v, then heads)."""
    running: list[Tensor] = []  # what the block that runs is to hand to the layer after its attention

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not all(map(_plain, (*args[1:], *kwargs.values()))):
            raise fail("net", "self-attention without masks or rotary positions", "an attention block given more")

    def projected(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        queries, keys, values = output.unflatten(2, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
        norms = (getattr(block, name, None) or nn.Identity() for name in ("q_norm", "k_norm"))
        queries, keys = (norm(x) for norm, x in zip(norms, (queries, keys), strict=True))
        queries = queries * block.scale
        visit(queries, keys)
        running.append(_attended(queries, keys, values))

    def attended(_: nn.Module, args: tuple[Any, ...]) -> None:
        if running and args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            _check(running.pop(), args[0])

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if running:  # no layer followed the attention
            _check(running.pop(), output)

    followers = [child for name, child in block.named_children() if name not in ("qkv", "q_norm", "k_norm")]
    return [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.qkv.register_forward_hook(projected),
        *(child.register_forward_pre_hook(attended) for child in followers),
        block.register_forward_hook(after),
    ]


def _blocks(net: nn.Module) -> list[Any]:
    kinds = ("qkv", "num_heads", "scale")
    found = [
        module
        for module in net.modules()
        if isinstance(module, nn.MultiheadAttention) or all(hasattr(module, name) for name in kinds)
    ]
    if not found:
        raise fail("net", _FOUND, "a network without any")
    return found


@contextmanager
def watched(net: nn.Module, visit: Visit) -> Iterator[None]:
    """Call `visit` for every attention block that runs in the body, in the order in which they run.

    Hooks only read, and are gone afterwards, also when the body raises.

    Raises:
        ValueError: a net without attention blocks, or with attention that these weights would not describe.
    """
    with ExitStack() as handles:
        for block in _blocks(net):
            watch = _watch_multihead if isinstance(block, nn.MultiheadAttention) else _watch_qkv
            for handle in watch(block, visit):
                handles.enter_context(handle)
        yield


@contextmanager
def attention_detached(net: nn.Module) -> Iterator[None]:
    """Let no gradient pass through the attention blocks in the body."""

    def cut(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()

    with ExitStack() as handles:
        for block in _blocks(net):
            handles.enter_context(block.register_forward_hook(cut))
        yield


def weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Return softmax(Q K^T), (B, heads, N, N), rows summing to 1; at least in float32."""
    return (queries @ keys.transpose(2, 3)).to(torch.promote_types(queries.dtype, torch.float32)).softmax(3)
