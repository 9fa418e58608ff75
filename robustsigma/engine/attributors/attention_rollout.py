"""Attention rollout: how much of each patch the class token of a vision transformer has mixed in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.attention import SelfAttention
from robustsigma.engine.attributors.patch_maps import PatchAttributor, seen_blocks
from robustsigma.engine.classifier import Classifier

HeadFusion = Literal["mean", "max", "min"]


@dataclass(frozen=True)
class AttentionRollout(PatchAttributor):
    """Attention rollout (Abnar and Zuidema, 2020, section 3): the class token's row of the product over layers.

    Each layer's matrix is r I + (1 - r) A with rows scaled to sum to 1, A the attention weights fused over heads; the
    class token's row of A_L ... A_1, without its own column, is laid out as the grid of patches and interpolated
    bilinearly to the image.

    It uses attention alone: the map is the same for every target, values are not negative, and there is no
    completeness: `drop` is 0, so that `gap()` is the sum of values. The rollout is spread evenly over channels, so that
    `heatmap()` is the rollout.

    Only networks with a class token in front and global self-attention qualify: torchvision's `VisionTransformer`, and
    those built of timm's or Hugging Face's attention blocks. Others are refused, because these weights do not
    describe them: attention with a bias, mask or windows of its own, and networks whose class token is not all
    that the head reads, or sees the image other than through attention (pooled patch tokens, convolutions).

    Args:
        head_fusion: how weights are fused over heads: "mean" is the paper's; "max" and "min" are in common use.
        residual: r, the weight of the skip connection.
        discard: share of the lowest fused weights of each image and layer that is set to 0, the class token's
            column excepted, in [0, 1). 0 is the paper's.

    Example:
        >>> AttentionRollout()(classifier, images).heatmap()  # the network is a vision transformer
    """

    score = "prob"  # of `confidence` alone

    head_fusion: HeadFusion = "mean"
    residual: float = 0.5
    discard: float = 0.0

    def __post_init__(self) -> None:
        validation.number("residual", self.residual, 0, 1)
        validation.number("discard", self.discard, 0, 1)
        if self.discard == 1:
            raise validation.fail("discard", "a share below 1", self.discard)

    def tokens(self, classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
        """Return the class token's row; the backward pass checks the network."""
        at = images.detach().requires_grad_(True)
        with seen_blocks(classifier.net, images, self._layer, detach=True) as layers:
            logits = classifier(at)
        _check_token(logits, at)
        # As the network runs: A_L ... A_2 A_1.
        return reduce(lambda product, layer: layer @ product, layers)[:, 0]

    def _layer(self, block: SelfAttention) -> Tensor:
        return torch.cat([self.mix(part.weights()) for (part,) in block.split()])

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
