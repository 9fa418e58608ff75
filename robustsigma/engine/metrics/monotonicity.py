"""Monotonicity: do pixels with a larger attribution have a larger effect?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import HeatmapMetric, MetricContext, MetricResult, MetricSpec, Skip, constant
from robustsigma.engine.metrics.masked_scores import MaskBaseline, baseline_images, target_scores
from robustsigma.engine.metrics.ranking import TieBreak, ranks, spearman
from robustsigma.engine.scores import Score, target_score


@dataclass(frozen=True)
class Monotonicity(HeatmapMetric):
    """Rank correlation of attributions with the effect of removing their pixels (Nguyen and Martínez, 2020).

    Pixels are split by their place in the order of the map into groups of equal size. Each group alone is replaced by
    a baseline; the correlation is between the groups' mean attributions and the absolute changes of the score. A random
    map has 0 on average. `robustsigma.engine.metrics.published.CumulativeMonotonicity` is another measure of that name.

    Args:
        groups: at most one for each pixel.
        baseline: what removed pixels become; see `robustsigma.engine.metrics.masked_scores.baseline_images`.
        score: score whose change is measured.
        tie_break: the order of equal pixels; see `robustsigma.engine.metrics.ranking.ranks`.
        reduction: how channels become one.

    Example:
        >>> Monotonicity(groups=16).quantities[0].better
        'higher'
    """

    groups: int = 32
    baseline: MaskBaseline = "mean"
    score: Score = "logit"
    tie_break: TieBreak = "random"

    def __post_init__(self) -> None:
        validation.integer("groups", self.groups, 3)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The rank correlation."""
        about = f"rank correlation of groups' attributions with the change of the {self.score} as they turn to "
        return (MetricSpec("monotonicity", "Monotonicity", "higher", about + self.baseline),)

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the correlation; a forward pass for each group."""
        height, width = heatmaps.shape[1:]
        count = min(self.groups, height * width)
        group = ranks(heatmaps, context.seeds, self.tie_break) * count // (height * width)
        removed = baseline_images(self.baseline, context)

        def make(rows: Tensor, copies: Tensor) -> Tensor:
            inside = group[rows] == copies[:, None]
            return torch.where(inside.reshape(-1, 1, height, width), removed[rows], context.images[rows])

        full = target_score(context.logits, context.target, self.score).double()[:, None]
        effects = (full - target_scores(context, count, make, self.score)).abs()
        sizes = torch.stack([(group == place).sum(1) for place in range(count)], 1)
        means = torch.zeros_like(effects).scatter_add_(1, group, heatmaps.flatten(1)) / sizes
        # Means of equal values differ in their last bits.
        found = spearman(means, effects).masked_fill(constant(heatmaps), torch.nan)
        return MetricResult({"monotonicity": found}, {"monotonicity": found.isnan().long() * Skip.NO_VARIANCE})
