"""Scores of images whose pixels are replaced by a baseline: of any copies, or of all on the way to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine.metrics.base import MetricContext
from robustsigma.engine.network_pass import split_sizes
from robustsigma.engine.scores import Score, target_score
from robustsigma.engine.validation import choice

MaskBaseline = Literal["blur", "blur11", "mean", "black"]
MASK_BASELINES: tuple[MaskBaseline, ...] = get_args(MaskBaseline)

Endpoint = MaskBaseline | Literal["image"]
AXES = {"prob": "probability of the class", "log_prob": "log-probability of the class", "logit": "logit"}

_SIDE, _STDS = 11, {"blur": 5.0, "blur11": 11.0}


def baseline_images(name: MaskBaseline, context: MetricContext) -> Tensor:
    """Return what pixels are replaced by, (B, C, H, W).

    "black" is the low end of the range. "mean" is the zero of the normalized image, the network's mean color, which
    RISE deletes to (Petsiuk et al., 2018). "blur" is RISE's: a convolution of the normalized image with an 11 x 11
    window of standard deviation 5, borders filled with the mean color. "blur11" is that of the code of MAS (Walker et
    al., 2024): the same window, of standard deviation 11.
    """
    choice("baseline", name, MASK_BASELINES)
    return context.shared(("baseline", name), lambda: _make(name, context))


def score_copies(
    context: MetricContext,
    count: int,
    make: Callable[[Tensor, Tensor], Tensor],
    read: Callable[[Tensor, Tensor], Tensor],
    target: Tensor | None = None,
) -> Tensor:
    """Return what `read` computes from each copy, (B, count, ...); call inside `frozen()`.

    No more copies than the network takes at once are held.

    Args:
        context: the images.
        count: copies of each image.
        make: from rows (n,), indices of images, and copies (n,), their numbers, to the images (n, C, H, W).
        read: from logits (n, K) and target classes (n,) to (n, ...).
        target: int64 (B,); the context's if None.
    """
    target = context.target if target is None else target
    every = torch.arange(len(context) * count, device=context.images.device)
    parts = []
    for at in every.split(split_sizes(len(every), context.classifier.chunk_size_for(context.images))):
        rows, copies = at // count, at % count
        parts.append(read(context.classifier.logits(make(rows, copies)), target[rows]))
    joined = torch.cat(parts)
    return joined.reshape(len(context), count, *joined.shape[1:])


def target_scores(context: MetricContext, count: int, make: Callable[[Tensor, Tensor], Tensor], score: Score) -> Tensor:
    """Return the target's score of each copy, float64 (B, count); arguments as for `score_copies`."""
    return score_copies(context, count, make, lambda logits, target: target_score(logits, target, score)).double()


def removed_shares(pixels: int, step: int, device: torch.device) -> Tensor:
    """Return the share of pixels replaced at each point of a curve, float64 (n + 1,), from 0 to 1."""
    return (torch.arange(-(-pixels // step) + 1, device=device, dtype=torch.float64) * step / pixels).clamp(max=1)


def normalized(curve: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return an "insertion" or "deletion" curve (B, n + 1) mapped so that its empty image has 0 and its full one 1.

    Also return whether the full image scores no higher, bool (B,): then the curve has no meaning.
    """
    empty, full = curve[:, :1], curve[:, -1:]
    if name == "deletion":
        empty, full = full, empty
    no_gain = full <= empty
    return (curve - empty) / (full - empty).where(~no_gain, 1), no_gain[:, 0]


def removal_curve(
    context: MetricContext, order: Tensor, step: int, first: Endpoint, last: Endpoint, score: Score = "prob"
) -> Tensor:
    """Return the target's score on the way from one image to another, float64 (B, n + 1); call inside `frozen()`.

    A call for the same order, ends, step and score costs no pass.

    Args:
        context: the images.
        order: int64 (B, H * W), the place of each pixel, 0 for the first to be replaced.
        step: pixels at a time; the last step may be shorter.
        first: what is shown at the start: "image" or a baseline.
        last: what is shown at the end.
        score: score of the target.
    """

    def compute() -> Tensor:
        start, end = (context.images if name == "image" else baseline_images(name, context) for name in (first, last))
        height, width = start.shape[2:]

        def make(rows: Tensor, copies: Tensor) -> Tensor:
            moved = order[rows] < (copies * step)[:, None]
            return torch.where(moved.reshape(-1, 1, height, width), end[rows], start[rows])

        return target_scores(context, -(-order.shape[1] // step) + 1, make, score)

    digest = hashlib.sha256(order.cpu().numpy().tobytes()).digest()
    return context.shared(("removal", digest, step, first, last, score), compute)


def _make(name: MaskBaseline, context: MetricContext) -> Tensor:
    images, bounds = context.images, context.classifier.bounds
    if name == "black":
        return torch.full_like(images, bounds[0])
    mean = context.classifier.mean.to(images).clamp(*bounds).expand(images.shape[1], 1, 1)
    if name == "mean":
        return mean.expand_as(images).contiguous()
    line, channels = _window(_STDS[name]).to(images), images.shape[1]
    across = F.conv2d(images - mean, line.expand(channels, 1, 1, -1), padding=(0, _SIDE // 2), groups=channels)
    down = F.conv2d(across, line[:, None].expand(channels, 1, -1, 1), padding=(_SIDE // 2, 0), groups=channels)
    return (down + mean).clamp(*bounds)


@lru_cache(maxsize=2)
def _window(std: float = _STDS["blur"]) -> Tensor:
    """Return one line of RISE's window, which is the product of two such lines.

    It is nearly flat, since the Gaussian is reflected at the borders of its 11 pixels.
    """
    from scipy.ndimage import gaussian_filter1d

    delta = np.zeros(_SIDE)
    delta[_SIDE // 2] = 1
    with torch.inference_mode(False):
        return torch.from_numpy(gaussian_filter1d(delta, std))
