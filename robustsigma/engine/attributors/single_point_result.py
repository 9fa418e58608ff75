"""The result of a method that compares the image with nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from robustsigma.engine.attributors.base import Attribution


def single_point_result(
    values: Tensor, target: Tensor, images: Tensor, score: Tensor, *, passes: tuple[int, int]
) -> Attribution:
    """Return a result without a path: the endpoint is the image, no step is taken, nothing drops.

    Args:
        values: (B, C, H, W).
        target: (B,).
        images: (B, C, H, W).
        score: (B,) of the target, the only point of the curve.
        passes: forward and backward passes for each image.
    """
    count, device = len(images), images.device
    return Attribution(
        values=values,
        target=target,
        endpoint=images,
        drop=torch.zeros(count, dtype=images.dtype, device=device),
        confidence=score.to(images.dtype).reshape(count, 1, 1),
        steps=torch.zeros(count, 1, dtype=torch.int64, device=device),
        converged=torch.ones(count, 1, dtype=torch.bool, device=device),
        forwards=torch.full((count,), passes[0], device=device),
        backwards=torch.full((count,), passes[1], device=device),
    )
