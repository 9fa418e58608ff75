"""Scores of many altered copies of each image, without holding more of them than the network takes at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustsigma.engine.chunks import split_sizes
from robustsigma.engine.metrics.base import MetricContext


def score_copies(
    subject: MetricContext,
    count: int,
    make: Callable[[Tensor, Tensor], Tensor],
    read: Callable[[Tensor, Tensor], Tensor],
    target: Tensor | None = None,
) -> Tensor:
    """Return what `read` makes of each copy, (B, count, ...); call inside `frozen()`.

    Args:
        subject: the images.
        count: copies of each image.
        make: from rows (n,), indices of images, and copies (n,), their numbers, to the images (n, C, H, W).
        read: from logits (n, K) and target classes (n,) to (n, ...).
        target: int64 (B,); the subject's if None.
    """
    target = subject.target if target is None else target
    every = torch.arange(len(subject) * count, device=subject.images.device)
    parts = []
    for at in every.split(split_sizes(len(every), subject.classifier.chunk_for(subject.images))):
        rows, copies = at // count, at % count
        parts.append(read(subject.classifier.logits(make(rows, copies)), target[rows]))
    joined = torch.cat(parts)
    return joined.reshape(len(subject), count, *joined.shape[1:])
