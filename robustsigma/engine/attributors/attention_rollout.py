"""Attention rollout: how much of each patch the class token of a vision transformer has mixed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.attention_weights import watched, weights
from robustsigma.engine.attributors.base import Attribution, Attributor, single_point_result
from robustsigma.engine.classifier import Classifier, target_score

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

    It looks at attention alone: the same map for every target, no sign (values are not negative), and no
    completeness: `drop` is 0, so that `gap()` is the sum of values. A map that spreads the rollout evenly over
    channels is returned, so `heatmap()` is the rollout.

    Only networks with a class token in front and global self-attention qualify: torchvision's `VisionTransformer`,
    and blocks with `qkv`, `num_heads` and `scale` as timm's have. Others are refused, because these weights do not
    describe them: attention with a bias, mask or windows of its own, and networks whose class token is not all
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
        named: list[Any] = [getattr(module, "num_prefix_tokens", None) for module in classifier.net.modules()]
        prefix = next((count for count in named if count is not None), 1)
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
