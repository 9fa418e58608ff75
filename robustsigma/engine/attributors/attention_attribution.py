"""Class-specific attention: relevance that the attention of a vision transformer carries to its class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine.attributors.attention import SelfAttention
from robustsigma.engine.attributors.patch_maps import PatchAttributor, seen_blocks
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score
from robustsigma.engine.validation import fail


@dataclass(frozen=True)
class AttentionAttribution(PatchAttributor):
    """Relevance by attention and its gradients for transformers with self-attention (Chefer et al., 2021, eq. 5, 6).

    A' of a block is the mean over heads of (dF/dA * A)+, A being its attention weights. From R = I, every block in turn
    replaces R by R + A' R. The class token's row of R, without the tokens in front of the patches, is laid out as the
    grid of patches and interpolated bilinearly to the image. Values are not negative.

    There is no completeness: `drop` is 0, so that `gap()` is the sum of values. The map is spread evenly over
    channels, so that `heatmap()` is the map.

    torchvision's `VisionTransformer` qualifies, and transformers of timm's or Hugging Face's attention blocks, if the
    head reads the class token alone.

    Args:
        score: F.

    Example:
        >>> AttentionAttribution()(classifier, images, target).heatmap()
    """

    score: Score = "logit"

    def tokens(self, classifier: Classifier, images: Tensor, target: Tensor) -> Tensor:
        """Return the class token's row of R."""
        at = images.detach().requires_grad_(True)
        with seen_blocks(classifier.net, images) as blocks:
            total = target_score(classifier(at), target, self.score).sum()
        # The images' own gradient is not needed; with it the pass is a whole one, as it is counted.
        inputs = [*(block.output for block in blocks), at]
        *gradients, _ = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        if gradients[-1][:, 1:].any():
            got = "logits that depend on other tokens of the last block, such as pooled patches"
            raise fail("net", "a head that reads the class token alone", got)
        return relevance(blocks, gradients)


@torch.no_grad()
def relevance(blocks: list[SelfAttention], gradients: list[Tensor]) -> Tensor:
    """Return the first row (B, N) of R = (I + A'_L) ... (I + A'_1), from dF/d output of each block."""
    row: Tensor | None = None
    # From the last block on, a row is multiplied by matrices, where R itself would take products of matrices.
    for block, gradient in zip(reversed(blocks), reversed(gradients), strict=True):
        parts = []
        for part, own in block.split(gradient):
            weights = part.weights()
            parts.append((part.weight_gradient(own) * weights).clamp(min=0).mean(1))
        mixed = torch.cat(parts)
        if row is None:
            row = torch.zeros_like(mixed[:, :1])
            row[..., 0] = 1
        row = row + row @ mixed
    assert row is not None
    return row[:, 0]
