"""LeRF and MoRF: how long the score stays, and how fast it falls, while pixels are removed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import Curve, HeatmapMetric, MetricContext, MetricResult, MetricSpec
from robustsigma.engine.metrics.masked_scores import AXES, MaskBaseline, removal_curve, removed_shares
from robustsigma.engine.metrics.ranking import TieBreak, ranks
from robustsigma.engine.scores import Score


@dataclass(frozen=True)
class LerfMorf(HeatmapMetric):
    """Mean score while the least (LeRF) and the most (MoRF) relevant pixels are removed first (Samek et al., 2017).

    Pixels are replaced by a baseline, `step` at a time. Each value is the mean height of its curve (trapezoid rule).
    LeRF minus MoRF is the symmetric relevance gain (Blücher et al., 2024): unlike the two alone, it hardly depends on
    how far the baseline is from real images.

    Args:
        baseline: what removed pixels become; see `robustsigma.engine.metrics.masked_scores.baseline_images`.
        step: pixels at a time; None takes the width of the image.
        score: score of the curves.
        tie_break: the order of equal pixels; see `robustsigma.engine.metrics.ranking.ranks`.
        reduction: how channels become one.

    Example:
        >>> LerfMorf(baseline="blur").quantities[0].title
        'LeRF'
    """

    baseline: MaskBaseline = "mean"
    step: int | None = None
    score: Score = "prob"
    tie_break: TieBreak = "random"

    def __post_init__(self) -> None:
        if self.step is not None:
            validation.integer("step", self.step, 1)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """LeRF, MoRF and their difference."""
        about = f"mean score while the {{}} relevant pixels turn to {self.baseline} first"
        return (
            MetricSpec("lerf", "LeRF", "higher", about.format("least")),
            MetricSpec("morf", "MoRF", "lower", about.format("most")),
            MetricSpec("relevance_gain", "LeRF \u2212 MoRF", "higher", "symmetric relevance gain: LeRF minus MoRF"),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the means and both curves; 2 (n + 1) forward passes an image."""
        order = ranks(heatmaps, context.seeds, self.tie_break)
        step = self.step or heatmaps.shape[2]
        share = removed_shares(order.shape[1], step, order.device)
        values, curves = {}, {}
        for name, removed in (("lerf", order.shape[1] - 1 - order), ("morf", order)):
            curve = removal_curve(context, removed, step, "image", self.baseline, self.score)
            values[name] = torch.trapezoid(curve, share)
            curves[name] = Curve(share, curve, "share of pixels removed", AXES[self.score])
        return MetricResult({**values, "relevance_gain": values["lerf"] - values["morf"]}, {}, curves)
