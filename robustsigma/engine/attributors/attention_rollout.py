"""Attention rollout: how much of each patch the class token of a vision transformer has mixed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import target_score
from robustsigma.engine.validation import fail

HeadFusion = Literal["mean", "max", "min"]

# Attention weights (images x heads x tokens x tokens) held at once: 256 MiB in float32.
_MOST_WEIGHTS = 2**26


class _Rollout:
    """Multiplies the layers' matrices up while the network runs: A_L ... A_2 A_1 for each image of one chunk."""

    def __init__(self, method: AttentionRollout, count: int) -> None:
        self.method, self.count = method, count
        self.product: Tensor | None = None

    def __call__(self, queries: Tensor, keys: Tensor) -> None:
        images, heads, tokens, _ = queries.shape
        expected = tokens if self.product is None else self.product.shape[1]
        if images != self.count or tokens != expected or keys.shape != queries.shape:
            got = f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)}"
            raise validation.fail("net", f"attention over the {expected} tokens of each of {self.count} images", got)
        size = max(1, _MOST_WEIGHTS // (heads * tokens * tokens))
        parts = zip(queries.split(size), keys.split(size), strict=True)
        layer = torch.cat([self.method.mix(weights(q, k)) for q, k in parts])
        self.product = layer if self.product is None else layer @ self.product


@dataclass(frozen=True)
class AttentionRollout(Attributor):
    """Attention rollout (Abnar and Zuidema, 2020, section 3): the class token's row of the product over layers.

    Each layer's matrix is r I + (1 - r) A with rows scaled to sum to 1, A the attention weights fused over heads; the
    class token's row of A_L ... A_1, without its own column, is laid out as the grid of patches and interpolated
    bilinearly to the image.

    It uses attention alone: the map is the same for every target, values are not negative, and there is no
    completeness: `drop` is 0, so that `gap()` is the sum of values. The rollout is spread evenly over channels, so that
    `heatmap()` is the rollout.

    Only networks with a class token in front and global self-attention qualify: torchvision's `VisionTransformer`,
    blocks with `qkv`, `num_heads` and `scale` as timm's have, and blocks with `q_proj`, `k_proj` and `v_proj` as those
    of transformers have, whatever their attention function (SDPA or eager). Others are refused, because these weights
    do not describe them: attention with a bias, mask or windows of its own, and networks whose class token is not all
    that the head reads, or sees the image other than through attention (pooled patch tokens, convolutions).

    Args:
        head_fusion: of the weights over heads: "mean" is the paper's; "max" and "min" are in common use.
        residual: r, the weight of the skip connection.
        discard: share of the lowest fused weights of each image and layer that is set to 0, the class token's
            column excepted, in [0, 1). 0 is the paper's.
    """

    head_fusion: HeadFusion = "mean"
    residual: float = 0.5
    discard: float = 0.0

    def __post_init__(self) -> None:
        validation.choice("head_fusion", self.head_fusion, get_args(HeadFusion))
        validation.number("residual", self.residual, 0, 1)
        validation.number("discard", self.discard, 0, 1)
        if self.discard == 1:
            raise validation.fail("discard", "a share below 1", self.discard)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the rollout: one more forward pass, and a backward pass that checks the network."""
        prefix = _prefix_tokens(classifier.net)
        validation.integer("net.num_prefix_tokens", prefix, 1)

        def run(chunk: Tensor) -> Tensor:
            rollout, at = _Rollout(self, len(chunk)), chunk.detach().requires_grad_(True)
            with watched(classifier.net, rollout):
                seen = classifier(at)
            if rollout.product is None:
                raise validation.fail("net", "attention blocks that take part in the forward pass", "none that ran")
            _check_token(seen, at)
            return rollout.product[:, 0, prefix:]

        patches = classifier.chunked(run, images)
        heat = _on_image(patches.to(images.dtype), images.shape[2], images.shape[3])
        values = (heat / images.shape[1]).expand_as(images).clone()
        return single_point_result(values, target, images, target_score(logits, target, "prob"), passes=(2, 1))

    def mix(self, attention: Tensor) -> Tensor:
        """Return a layer's matrix (B, N, N) from its attention weights (B, heads, N, N)."""
        if self.head_fusion == "mean":
            fused = attention.mean(1)
        else:
            fused = attention.amax(1) if self.head_fusion == "max" else attention.amin(1)
        tokens = fused.shape[1]
        if self.discard > 0:
            flat = fused.flatten(1)
            lowest = flat.argsort(dim=1, stable=True)[:, : int(self.discard * flat.shape[1])]
            dropped = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, lowest, True).view_as(fused)
            dropped[:, :, 0] = False
            fused = fused.masked_fill(dropped, 0)
        mixed = (1 - self.residual) * fused + self.residual * torch.eye(tokens, dtype=fused.dtype, device=fused.device)
        # Without a residual, the least of many heads can underflow to a row of zeros.
        return mixed / mixed.sum(2, keepdim=True).clamp_min(torch.finfo(mixed.dtype).tiny)


def _prefix_tokens(net: nn.Module) -> Any:
    """Return the number of tokens before the patches: timm says it, transformers has it in names and in the config."""
    modules = list(net.modules())
    named: list[Any] = [getattr(module, "num_prefix_tokens", None) for module in modules]
    registers = getattr(getattr(net, "config", None), "num_register_tokens", 0)
    distilled = any(isinstance(getattr(module, "distillation_token", None), Tensor) for module in modules)
    return next((count for count in named if count is not None), 1 + registers + distilled)


def _check_token(logits: Tensor, images: Tensor) -> None:
    """Raise where logits depend on images in another way than attention, which lets no gradient pass."""
    if not logits.requires_grad:
        return
    (gradient,) = torch.autograd.grad(logits.sum(), images, allow_unused=True, materialize_grads=True)
    if gradient.any():
        expected = "a class token that reads the image through attention, and a head that reads only that token"
        raise validation.fail("net", expected, "logits that depend on the patches in another way, such as pooling")


def _on_image(patches: Tensor, height: int, width: int) -> Tensor:
    """Return (B, 1, H, W) from one value a patch (B, n); the grid of square patches has the image's proportions."""
    count = patches.shape[1]
    rows, columns = (round((count * ratio) ** 0.5) for ratio in (height / width, width / height))
    if count == 0 or rows * columns != count:
        raise validation.fail("net", f"a class token and a grid of patches over {height}x{width}", f"{count} patches")
    grid = patches.reshape(-1, 1, rows, columns)
    return F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)


# Called once for each attention block with queries, already scaled, and keys (B, heads, N, D).
Visit = Callable[[Tensor, Tensor], None]

_FOUND = (
    "self-attention blocks: torch.nn.MultiheadAttention, or modules with `qkv`, `num_heads` and `scale` (as timm's) "
    "or with `q_proj`, `k_proj` and `v_proj` (as those of transformers)"
)
_PROJECTIONS = ("qkv",), ("q_proj", "k_proj", "v_proj")


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


@torch.no_grad()
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


def _projections(block: Any) -> tuple[str, ...] | None:
    """Return the names of the layers that give queries, keys and values, or None if this is no such block."""
    heads = hasattr(block, "num_heads") or hasattr(block, "num_attention_heads")
    scaled = hasattr(block, "scale") or hasattr(block, "scaling")
    return next((p for p in _PROJECTIONS if all(hasattr(block, n) for n in p)), None) if heads and scaled else None


def _watch_projections(block: Any, visit: Visit) -> list[RemovableHandle]:
    """Take queries and keys from the block's own layers; one layer for all gives queries, keys, values, then heads."""
    names = _projections(block)
    assert names is not None
    heads = getattr(block, "num_heads", None) or block.num_attention_heads
    scale = block.scale if hasattr(block, "scale") else block.scaling
    given: dict[str, Tensor] = {}
    running: list[Tensor] = []  # what the block that runs is to hand to the layer after its attention

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = [value for name, value in kwargs.items() if name != "hidden_states"]
        if not all(map(_plain, (*args[1:], *others))):
            raise fail("net", "self-attention without masks or rotary positions", "an attention block given more")
        given.clear()

    def projected(name: str, output: Tensor) -> None:
        given[name] = output
        if len(given) < len(names):
            return
        every = torch.cat([given[each] for each in names], -1)
        queries, keys, values = every.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        norms = (getattr(block, name, None) or nn.Identity() for name in ("q_norm", "k_norm"))
        queries, keys = (norm(x) for norm, x in zip(norms, (queries, keys), strict=True))
        queries = queries * scale
        visit(queries, keys)
        running.append(_attended(queries, keys, values))

    def attended(_: nn.Module, args: tuple[Any, ...]) -> None:
        if running and args and isinstance(args[0], Tensor) and args[0].ndim == 3:
            _check(running.pop(), args[0])

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if running:  # no layer followed the attention
            _check(running.pop(), output[0] if isinstance(output, tuple) else output)

    followers = [child for name, child in block.named_children() if name not in (*names, "q_norm", "k_norm")]
    return [
        block.register_forward_pre_hook(before, with_kwargs=True),
        *(
            getattr(block, name).register_forward_hook(lambda _, args, output, name=name: projected(name, output))
            for name in names
        ),
        *(child.register_forward_pre_hook(attended) for child in followers),
        block.register_forward_hook(after),
    ]


def _blocks(net: nn.Module) -> list[Any]:
    found = [each for each in net.modules() if isinstance(each, nn.MultiheadAttention) or _projections(each)]
    if not found:
        raise fail("net", _FOUND, "a network without any")
    return found


def _detached(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()


@contextmanager
def watched(net: nn.Module, visit: Visit) -> Iterator[None]:
    """Call `visit` for every attention block that runs in the body, in the order in which they run.

    Hooks change no value, and are gone afterwards, also when the body raises. No gradient passes through a block, so
    that what gradient there is shows other ways from the image to the logits.

    Raises:
        ValueError: a net without attention blocks, or with attention that these weights would not describe.
    """
    with ExitStack() as handles:
        for block in _blocks(net):
            watch = _watch_multihead if isinstance(block, nn.MultiheadAttention) else _watch_projections
            for handle in (*watch(block, visit), block.register_forward_hook(_detached)):
                handles.enter_context(handle)
        yield


@torch.no_grad()
def weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Return softmax(Q K^T), (B, heads, N, N), rows summing to 1; at least in float32."""
    return (queries @ keys.transpose(2, 3)).to(torch.promote_types(queries.dtype, torch.float32)).softmax(3)
