"""Sensitivity-N: does the sum of the attributions of some pixels predict what their removal costs?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Reduction
from robustsigma.engine.metrics.base import Curve, HeatmapMetric, MetricContext, MetricResult, MetricSpec, Skip
from robustsigma.engine.metrics.masked_scores import MaskBaseline, baseline_images, target_scores
from robustsigma.engine.metrics.ranking import pearson
from robustsigma.engine.scores import Score, target_score

# Ten fractions from .01 to .9, evenly spaced on a logarithmic axis.
_FRACTIONS = tuple(round(0.01 * 90 ** (k / 9), 4) for k in range(10))
_MOST_VALUES = 2**22  # of the permutations held at once


@dataclass(frozen=True)
class SensitivityN(HeatmapMetric):
    """Correlation between attribution and effect over random sets of n pixels (Ancona et al., 2018, definition 1).

    For each share of the pixels, random sets S of that size are drawn; the correlation is between the sum of the
    attributions in S and F(x) - F(x without S), over the sets, for each image. The value is the mean over shares. A
    share at which one of the two does not vary has no correlation and is left out; an image without any is skipped.
    One random order serves all shares: the set of n pixels is its first n.

    Args:
        fractions: shares of the pixels, each in (0, 1).
        subsets: sets drawn for each image and share.
        baseline: what removed pixels become: "mean", "blur" or "black".
        score: F.
        reduction: how channels become one; a pixel is a feature, and signs count.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> SensitivityN()(context, IntegratedGradients()(classifier, images, labels)).values["sensitivity_n"]
    """

    fractions: tuple[float, ...] = _FRACTIONS
    subsets: int = 100
    baseline: MaskBaseline = "mean"
    score: Score = "logit"
    reduction: Reduction = field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        validation.shares("fractions", self.fractions, inside=True)
        validation.integer("subsets", self.subsets, 2)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The mean correlation."""
        about = (
            f"correlation of a random set's attribution with what its removal to {self.baseline} costs, mean of shares"
        )
        return (MetricSpec("sensitivity_n", "Sensitivity-N", "higher", about),)

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the correlations; the first call for a context costs a forward pass for each set of each share."""
        key = ("sensitivity_n", self.fractions, self.subsets, self.baseline, self.score)
        costs = context.shared(key, lambda: self._costs(context))
        sizes = self._sizes(heatmaps[0].numel(), heatmaps.device)
        flat = heatmaps.flatten(1)
        sums = torch.cat(
            [
                flat[:, None].expand_as(order).gather(2, order).cumsum(2)[..., sizes - 1]
                for order in self._orders(context)
            ],
            1,
        )
        found = pearson(sums.transpose(1, 2), costs.transpose(1, 2))
        # Sums of a constant map differ in their last bits, because of the order of the additions.
        found = found.masked_fill((flat.amin(1) == flat.amax(1))[:, None], torch.nan)
        skips = found.isnan().all(1).long() * Skip.NO_VARIANCE
        grid = torch.tensor(self.fractions, dtype=torch.float64, device=flat.device)
        curve = Curve(grid, found, "share of pixels removed", "correlation")
        return MetricResult({"sensitivity_n": found.nanmean(1)}, {"sensitivity_n": skips}, {"sensitivity_n": curve})

    def _sizes(self, pixels: int, device: torch.device) -> Tensor:
        return torch.tensor([min(max(1, round(s * pixels)), pixels - 1) for s in self.fractions], device=device)

    def _orders(self, context: MetricContext) -> Iterator[Tensor]:
        """Yield the random orders of the pixels, int64 (B, some of the sets, H * W)."""
        count, pixels = len(context), context.images[0, 0].numel()
        size = max(1, _MOST_VALUES // (count * pixels))
        for start in range(0, self.subsets, size):
            sets = torch.arange(start, min(start + size, self.subsets), device=context.images.device)
            keys = noise.fold(context.seeds.repeat_interleave(len(sets)), "sensitivity_n", sets.repeat(count))
            drawn = noise.uniform(keys, (pixels,), torch.float32)
            yield drawn.argsort(dim=1, stable=True).reshape(count, len(sets), pixels)

    def _costs(self, context: MetricContext) -> Tensor:
        """Return F(x) - F(x without S), float64 (B, subsets, shares)."""
        removed = baseline_images(self.baseline, context)
        height, width = removed.shape[2:]
        sizes = self._sizes(height * width, removed.device)
        parts = []
        for order in self._orders(context):
            places = torch.arange(order.shape[2], device=order.device).expand_as(order)
            rank = torch.empty_like(order).scatter_(2, order, places)

            def make(rows: Tensor, copies: Tensor, rank: Tensor = rank) -> Tensor:
                inside = rank[rows, copies // len(sizes)] < sizes[copies % len(sizes)][:, None]
                return torch.where(inside.reshape(-1, 1, height, width), removed[rows], context.images[rows])

            copies = order.shape[1] * len(sizes)
            scores = target_scores(context, copies, make, self.score)
            parts.append(scores.reshape(len(context), -1, len(sizes)))
        full = target_score(context.logits, context.target, self.score).double()
        return full[:, None, None] - torch.cat(parts, 1)
