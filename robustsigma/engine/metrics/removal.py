"""The score while pixels of an image are replaced one after the other; metrics of the same curve share its passes."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine.metrics.base import MetricContext
from robustsigma.engine.metrics.masked_scores import MaskBaseline, baseline_images, target_scores
from robustsigma.engine.scores import Score

Endpoint = MaskBaseline | Literal["image"]

AXES = {"prob": "probability of the class", "log_prob": "log-probability of the class", "logit": "logit"}


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
