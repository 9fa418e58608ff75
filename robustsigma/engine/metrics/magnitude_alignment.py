"""Magnitude Aligned Scoring: insertion and deletion that also compare the size of attributions with the response."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import (
    Curve,
    HeatmapMetric,
    MetricContext,
    MetricResult,
    MetricSpec,
    Skip,
    constant,
)
from robustsigma.engine.metrics.masked_scores import MaskBaseline, normalized, removal_curve, removed_shares
from robustsigma.engine.metrics.ranking import TieBreak, ranks


@dataclass(frozen=True)
class MagnitudeAlignedScore(HeatmapMetric):
    """Areas under the magnitude-aligned insertion and deletion curves, MAS (Walker et al., IJCAI 2024).

    The model's response is the target's probability, mapped so that the empty image has 0 and the full image 1, clipped
    to [0, 1] and made monotone. The density is the share of the map's sum that lies on the pixels shown. Their distance
    is a penalty: insertion is the response minus the penalty, deletion the response plus the penalty, both clipped to
    [0, 1]. A map whose order is right and whose magnitudes are not scores worse than in RISE's insertion and deletion.

    Images whose full image scores no higher than the empty one are skipped, where the authors' code divides by a
    negative number or takes .5. Constant maps are skipped: they have no order, but magnitudes that suit a random one.
    Negative values of a map have no density.

    Args:
        insertion: what insertion starts from; see `robustsigma.engine.metrics.masked_scores.baseline_images`.
        deletion: what deletion ends with.
        step: pixels at a time; None takes the width of the image, as the authors do.
        tie_break: the order of equal pixels; see `robustsigma.engine.metrics.ranking.ranks`.
        reduction: how channels become one.

    Example:
        >>> [quantity.name for quantity in MagnitudeAlignedScore().quantities]
        ['mas_insertion', 'mas_deletion', 'mas_difference']
    """

    insertion: MaskBaseline = "blur"
    deletion: MaskBaseline = "mean"
    step: int | None = None
    tie_break: TieBreak = "random"

    def __post_init__(self) -> None:
        if self.step is not None:
            validation.integer("step", self.step, 1)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """MAS insertion, MAS deletion and their difference."""
        about = "area under the response {} its distance from the share of the attribution, as pixels {}"
        inserted, deleted = about.format("minus", f"appear on {self.insertion}"), about.format("plus", "turn to {}")
        return (
            MetricSpec("mas_insertion", "MAS insertion", "higher", inserted),
            MetricSpec("mas_deletion", "MAS deletion", "lower", deleted.format(self.deletion)),
            MetricSpec("mas_difference", "MAS ins. \u2212 del.", "higher", "MAS insertion minus MAS deletion"),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the areas and both curves; 2 (n + 1) forward passes an image."""
        order = ranks(heatmaps, context.seeds, self.tie_break)
        step, pixels = self.step or heatmaps.shape[2], order.shape[1]
        share = removed_shares(pixels, step, order.device)
        positive = heatmaps.flatten(1).clamp(min=0)
        sums = positive.gather(1, order.argsort(dim=1)).cumsum(1)
        total = sums[:, -1:]
        flat = constant(heatmaps) | (total[:, 0] == 0)
        counts = (share * pixels).round().long()
        shown = torch.cat([torch.zeros_like(total), sums], 1)[:, counts] / total.where(total > 0, 1)
        responses = {
            "insertion": removal_curve(context, order, step, self.insertion, "image"),
            "deletion": removal_curve(context, order, step, "image", self.deletion),
        }
        values, curves, skips = {}, {}, {}
        for name, curve in responses.items():
            sign = -1 if name == "insertion" else 1
            response, no_gain = normalized(curve, name)
            response = response.clamp(0, 1)
            response = response.cummax(1).values if sign < 0 else response.cummin(1).values
            density = shown if sign < 0 else 1 - shown
            aligned = (response + sign * (response - density).abs()).clamp(0, 1)
            skips[name] = torch.where(flat, int(Skip.NO_VARIANCE), no_gain.long() * Skip.NO_GAIN)
            aligned = aligned.masked_fill((skips[name] != 0)[:, None], torch.nan)
            values[name] = torch.trapezoid(aligned, share)
            title = "share of pixels shown" if sign < 0 else "share of pixels taken away"
            curves[f"mas_{name}"] = Curve(share, aligned, title, "aligned response")
        values["difference"] = values["insertion"] - values["deletion"]
        skips["difference"] = torch.maximum(skips["insertion"], skips["deletion"])
        return MetricResult(
            {f"mas_{name}": value for name, value in values.items()},
            {f"mas_{name}": skip for name, skip in skips.items()},
            curves,
        )
