"""Insertion and deletion: how fast the score rises or falls with the pixels that an attribution ranks first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import Curve, HeatmapMetric, MetricContext, MetricResult, MetricSpec, Skip
from robustsigma.engine.metrics.masked_scores import AXES, MaskBaseline, normalized, removal_curve, removed_shares
from robustsigma.engine.metrics.ranking import TieBreak, ranks
from robustsigma.engine.scores import Score


@dataclass(frozen=True)
class InsertionDeletion(HeatmapMetric):
    """Areas under RISE's insertion and deletion curves (Petsiuk et al., 2018, section 4.1) and their difference.

    Pixels are inserted into a baseline image, or deleted from the full image, `step` at a time and in the order of the
    heatmap; the curve is the score of the target. The difference, insertion minus deletion, is the measure of Akhtar
    and Jalwana. A curve's area is the trapezoid rule over its n + 1 points; where `step` does not divide the image, the
    last step is shorter, which RISE's code ignores.

    Args:
        insertion: baseline that insertion starts from; see `robustsigma.engine.metrics.masked_scores.baseline_images`.
        deletion: baseline that deletion ends with.
        step: number of pixels at a time; None takes the width of the image, as RISE does.
        score: score whose curves are drawn.
        normalized: also map each curve so that its empty image has 0 and its full image 1; images whose full image
            scores no higher are skipped.
        tie_break: the order of equal pixels; see `robustsigma.engine.metrics.ranking.ranks`.
        reduction: how channels become one.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> InsertionDeletion()(context, IntegratedGradients()(classifier, images, labels)).values["difference"]
    """

    insertion: MaskBaseline = "blur"
    deletion: MaskBaseline = "mean"
    step: int | None = None
    score: Score = "prob"
    normalized: bool = False
    tie_break: TieBreak = "random"

    def __post_init__(self) -> None:
        if self.step is not None:
            validation.integer("step", self.step, 1)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """Insertion, deletion and their difference."""
        return (
            MetricSpec(
                "insertion", "Insertion", "higher", f"area under the score as pixels appear on {self.insertion}"
            ),
            MetricSpec("deletion", "Deletion", "lower", f"area under the score as pixels turn to {self.deletion}"),
            MetricSpec("difference", "Insertion \u2212 deletion", "higher", "insertion minus deletion of one image"),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the areas and both curves; 2 (n + 1) forward passes an image."""
        order = ranks(heatmaps, context.seeds, self.tie_break)
        step = self.step or heatmaps.shape[2]
        curves = {
            "insertion": removal_curve(context, order, step, self.insertion, "image", self.score),
            "deletion": removal_curve(context, order, step, "image", self.deletion, self.score),
        }
        skips: dict[str, Tensor] = {}
        if self.normalized:
            mapped = {name: normalized(curve, name) for name, curve in curves.items()}
            curves = {name: curve.masked_fill(flat[:, None], torch.nan) for name, (curve, flat) in mapped.items()}
            skips = {name: flat.long() * Skip.NO_GAIN for name, (_, flat) in mapped.items()}
            skips["difference"] = torch.maximum(skips["insertion"], skips["deletion"])
        share = removed_shares(order.shape[1], step, order.device)
        areas = {name: torch.trapezoid(curve, share) for name, curve in curves.items()}
        axis = AXES[self.score] + (", normalized" if self.normalized else "")
        titles = {"insertion": "share of pixels shown", "deletion": "share of pixels taken away"}
        return MetricResult(
            {**areas, "difference": areas["insertion"] - areas["deletion"]},
            skips,
            {name: Curve(share, curve, titles[name], axis) for name, curve in curves.items()},
        )
