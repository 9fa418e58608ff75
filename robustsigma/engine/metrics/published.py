"""Metrics as the code of others computes them, for comparisons with published numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import Attribution
from robustsigma.engine.metrics.base import AttributionMetric, MetricContext, MetricResult, MetricSpec, Skip
from robustsigma.engine.metrics.insertion_deletion import InsertionDeletion
from robustsigma.engine.metrics.localization import Localization, intersection_over_union, with_skips
from robustsigma.engine.metrics.pic import Array, CurveEnds, PerformanceInformation, make_ends
from robustsigma.engine.metrics.ranking import spearman

__all__ = [
    "CumulativeMonotonicity",
    "IDGRepositoryPerformanceInformation",
    "ProtocolMetric",
    "SaliencyBenchLocalization",
]


@dataclass(frozen=True)
class CumulativeMonotonicity(InsertionDeletion):
    """What the survey code of IDG's authors calls monotonicity (Walker and Ewetz, 2026): is the curve monotone?

    It is the rank correlation of the insertion curve with the share of pixels shown, and of the deletion curve with
    the share still shown; `normalized` has no effect. It rewards random orders, along which the score rises steadily,
    over good ones, along which it jumps at once and then stays: compare methods by
    `robustsigma.engine.metrics.Monotonicity`. Images with a flat curve are skipped.
    """

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """Both correlations."""
        about = "rank correlation of the {} curve with the share of pixels shown"
        return (
            MetricSpec("monotonicity_insertion", "Monotonicity +", "higher", about.format("insertion")),
            MetricSpec("monotonicity_deletion", "Monotonicity \u2212", "higher", about.format("deletion")),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the correlations; the passes are those of `InsertionDeletion`."""
        curves = super().of_heatmaps(context, heatmaps).curves
        values = {}
        for name, sign in (("insertion", 1), ("deletion", -1)):
            share = curves[name].x.expand_as(curves[name].y)
            values[f"monotonicity_{name}"] = sign * spearman(share, curves[name].y)
        return MetricResult(values, {name: value.isnan().long() * Skip.NO_VARIANCE for name, value in values.items()})


@dataclass(frozen=True)
class SaliencyBenchLocalization(Localization):
    """What Saliency-Bench's code computes (Zhang et al., 2023); `threshold` and `marked` have no effect.

    `iou` and `precision` are of all pixels above 0, `recall` of those above .5, all against masks cut to integers, so
    that a soft mask counts only where it is 1. `pointing_game` is 1 where any of the highest pixels has a positive
    mask. NaN is skipped. A dense positive map has the mask's share of the image as its IoU, whatever it shows, and a
    constant map always hits.
    """

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """IoU, pointing game, precision and recall."""
        return (
            MetricSpec("iou", "IoU > 0", "higher", "overlap of all positive pixels with the object"),
            MetricSpec("pointing_game", "Pointing game", "higher", "whether the highest pixel lies on the object"),
            MetricSpec("precision", "Precision", "higher", "share of the positive pixels that lie on the object"),
            MetricSpec("recall", "Recall", "higher", "share of the object with values above .5"),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the values; no pass of the network."""
        assert context.masks is not None  # checked by the base
        flat, soft = heatmaps.flatten(1), context.masks.flatten(1)
        mask, positive = soft.long() != 0, flat > 0
        top = flat == flat.amax(1, keepdim=True)
        recall = (mask & (flat > 0.5)).sum(1).double() / mask.sum(1)
        values = {
            "iou": intersection_over_union(positive, mask),
            "pointing_game": (top & (soft > 0)).any(1).double(),
            "precision": (positive & mask).sum(1).double() / positive.sum(1),
            "recall": recall.where(mask.any(1), torch.zeros_like(recall)),
        }
        return with_skips(values, soft.sum(1) == 0)


@dataclass(frozen=True)
class IDGRepositoryPerformanceInformation(PerformanceInformation):
    """The copy of PIC in the code of IDG (Walker et al., 2024); `min_confidence` has no effect.

    No image is skipped, so that one whose start has the higher score or size gets an area without meaning. Images stay
    floats, whose sizes are of bytes cut, not rounded. The class is the predicted one, and AIC too is scaled by
    softmaxes.
    """

    def _make_ends(self, context: MetricContext, drawn: Array) -> CurveEnds:
        ends = make_ends(context, context.images, drawn, self.interpolation, predicted=True)
        return ends._replace(blurred=ends.blurred[:, :1].expand(-1, 2), original=ends.original[:, :1].expand(-1, 2))

    def _skips(self, ends: CurveEnds) -> Array:
        same_size = (ends.information[:, :1] == ends.information[:, 1:]).repeat(2, 1)
        same_score = (ends.blurred == ends.original).cpu().numpy()
        return np.select([same_size, same_score], [Skip.NO_INFORMATION, Skip.BLUR_EXPLAINS], Skip.NO)


@dataclass(frozen=True)
class ProtocolMetric(AttributionMetric):
    """A metric whose quantities carry the name of a protocol, so that one run measures several protocols.

    Args:
        protocol: its name.
        metric: what it measures; curves are left out.
        reported: names of the metric's quantities that the protocol has.
    """

    protocol: str
    metric: AttributionMetric
    reported: tuple[str, ...]

    def __post_init__(self) -> None:
        validation.instance("metric", self.metric, AttributionMetric)
        object.__setattr__(self, "needs_masks", self.metric.needs_masks)
        object.__setattr__(self, "group", self.metric.group)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """Those of the metric that are reported, named with the protocol."""
        return tuple(
            replace(each, name=self._named(each.name), title=self._named(each.title))
            for each in self.metric.quantities
            if each.name in self.reported
        )

    def measure(self, context: MetricContext, attribution: Attribution | Tensor) -> MetricResult:
        """Compute the metric."""
        found = self.metric.measure(context, attribution)
        values, skips = (
            {self._named(name): each for name, each in part.items() if name in self.reported}
            for part in (found.values, found.skips)
        )
        return MetricResult(values, skips)

    def _named(self, name: str) -> str:
        return f"{name} ({self.protocol})"
