"""Hooks that see what the attention blocks of a vision transformer compute while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustsigma.engine.attributors.attention import SelfAttention
from robustsigma.engine.validation import fail

# Layers that make queries, keys and values: timm's, and those of newer and older Hugging Face blocks.
_LAYERS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))

Visit = Callable[[SelfAttention], None]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _heads(projected: Tensor, count: int) -> Tensor:
    """Return (B, heads, N, D) of (B, N, heads * D)."""
    return projected.detach().unflatten(2, (count, -1)).transpose(1, 2)


def _watch_multihead(block: nn.MultiheadAttention, visit: Visit) -> list[RemovableHandle]:
    """Compute queries and keys from what the block is given: its own weights are lost in fused kernels."""
    if not block._qkv_same_embed_dim or block.bias_k is not None or block.add_zero_attn:
        raise fail("net", "attention over its own tokens only", "MultiheadAttention with other keys or extra tokens")

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Any]) -> None:
        query, key = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key")))
        masks = (*args[3:4], *args[5:6], kwargs.get("key_padding_mask"), kwargs.get("attn_mask"))
        if query is not key or not all(map(_plain, masks)):
            raise fail("net", "self-attention without masks", "other keys, or a mask")
        tokens, result = (each if block.batch_first else each.transpose(0, 1) for each in (query, output[0]))
        with torch.no_grad():
            parts = F.linear(tokens, block.in_proj_weight, block.in_proj_bias).chunk(3, 2)
        queries, keys, values = (_heads(part, block.num_heads) for part in parts)
        projection = (block.out_proj.weight, block.out_proj.bias)
        visit(SelfAttention(queries * block.head_dim**-0.5, keys, values, result, projection))

    return [block.register_forward_hook(after, with_kwargs=True)]


def _watch_projected(block: Any, names: tuple[str, ...], visit: Visit) -> list[RemovableHandle]:
    """Take queries, keys and values from the block's own layers; `qkv` gives all three, then heads."""
    count = next(getattr(block, name) for name in ("num_heads", "num_attention_heads") if hasattr(block, name))
    scale = next((getattr(block, name) for name in ("scale", "scaling") if hasattr(block, name)), None)
    made: dict[str, Tensor] = {}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = [value for name, value in kwargs.items() if name != "hidden_states"]
        if not all(map(_plain, (*args[1:], *others))):
            raise fail("net", "self-attention without masks or rotary positions", "an attention block given more")

    def projected(name: str) -> Callable[..., None]:
        return lambda _, args, output: made.__setitem__(name, output)

    def attended(output: Any = None) -> None:
        if len(made) < len(names) or not isinstance(output, Tensor) or output.ndim != 3:
            return
        parts = made[names[0]].chunk(3, 2) if len(names) == 1 else [made[name] for name in names]
        made.clear()
        queries, keys, values = (_heads(part, count) for part in parts)
        normed = []
        for name, part in (("q_norm", queries), ("k_norm", keys)):
            norm = getattr(block, name, None)
            normed.append(part if norm is None else norm(part).detach())
        by = queries.shape[3] ** -0.5 if scale is None else scale
        visit(SelfAttention(normed[0] * by, normed[1], values, output))

    followers = [child for name, child in block.named_children() if name not in (*names, "q_norm", "k_norm")]
    return [
        block.register_forward_pre_hook(before, with_kwargs=True),
        *(getattr(block, name).register_forward_hook(projected(name)) for name in names),
        *(child.register_forward_pre_hook(lambda _, args: attended(*args[:1])) for child in followers),
        # Where no layer followed the attention.
        block.register_forward_hook(lambda _, args, output: attended(first_of(output))),
    ]


def first_of(output: Any) -> Any:
    """Return a layer's output; some give it in front of others."""
    return output[0] if isinstance(output, tuple) else output


def _layers_of(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the layers that make a block's queries, keys and values; None for no such block."""
    if not any(hasattr(module, name) for name in ("num_heads", "num_attention_heads")):
        return None
    return next(
        (names for names in _LAYERS if all(isinstance(getattr(module, n, None), nn.Module) for n in names)), None
    )


def attention_blocks(net: nn.Module) -> list[nn.Module]:
    """Return the self-attention blocks of a network; raise where there is none that is understood."""
    found = [module for module in net.modules() if isinstance(module, nn.MultiheadAttention) or _layers_of(module)]
    if not found:
        expected = "self-attention blocks: torch.nn.MultiheadAttention, or modules with `num_heads` and `qkv` (timm), "
        raise fail("net", expected + "or `q_proj`, `k_proj` and `v_proj` (Hugging Face)", "a network without any")
    return found


def _detached(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()


@contextmanager
def watched(net: nn.Module, visit: Visit, *, detach: bool = False) -> Iterator[None]:
    """Call `visit` for every attention block that runs in the body, in the order in which they run.

    Hooks change no value, and are gone afterwards, also when the body raises. With `detach` no gradient passes
    through a block, so that what gradient there is shows other ways from the image to the logits.

    Raises:
        ValueError: a net without attention blocks, or with attention that these weights would not describe.
    """

    def checked(seen: SelfAttention) -> None:
        seen.check()
        visit(seen)

    with ExitStack() as handles:
        for block in attention_blocks(net):
            names = _layers_of(block)
            if isinstance(block, nn.MultiheadAttention):
                added = _watch_multihead(block, checked)
            else:
                added = _watch_projected(block, names or (), checked)
            for handle in (*added, *([block.register_forward_hook(_detached)] if detach else ())):
                handles.enter_context(handle)
        yield
