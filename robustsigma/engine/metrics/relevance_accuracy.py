"""Relevance mass and rank accuracy: how much of a map lies on the annotated object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import (
    HeatmapMetric,
    MetricContext,
    MetricGroup,
    MetricResult,
    MetricSpec,
    constant,
)
from robustsigma.engine.metrics.localization import with_skips
from robustsigma.engine.metrics.ranking import ranks


@dataclass(frozen=True)
class RelevanceAccuracy(HeatmapMetric):
    """Relevance mass accuracy and relevance rank accuracy (Arras et al., CLEVR-XAI, 2022, section 3.3).

    - `relevance_mass`: the share of the map's positive values that lies on the object.
    - `relevance_rank`: of as many of the highest pixels as the object has, the share that lies on it.

    Random maps have the object's share of the image in both. A constant map has 0. Images with an empty mask are
    skipped. Quantus computes the same, but for negative values, which it also adds up.

    Args:
        marked: a pixel belongs to the object where a soft mask is at least this, in (0, 1].
        reduction: how channels become one.

    Example:
        >>> [quantity.name for quantity in RelevanceAccuracy().quantities]
        ['relevance_mass', 'relevance_rank']
    """

    marked: float = 0.5
    needs_masks: ClassVar[bool] = True
    group: ClassVar[MetricGroup] = "localization"

    def __post_init__(self) -> None:
        validation.number("marked", self.marked, 0, 1, open_low=True)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """Both shares."""
        about = "share of the highest pixels, as many as the object has, that lies on the object"
        return (
            MetricSpec("relevance_mass", "Relevance mass", "higher", "share of the positive values on the object"),
            MetricSpec("relevance_rank", "Relevance rank", "higher", about),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the shares; no pass of the network."""
        assert context.masks is not None  # checked by the base
        mask, positive = (context.masks >= self.marked).flatten(1), heatmaps.flatten(1).clamp(min=0)
        area, total = mask.sum(1), positive.sum(1)
        top = ranks(heatmaps, context.seeds) < area[:, None]
        values = {
            "relevance_mass": (positive * mask).sum(1) / total.where(total > 0, 1),
            "relevance_rank": (top & mask).sum(1).double() / area.clamp(min=1),
        }
        flat = constant(heatmaps)
        return with_skips({name: value.masked_fill(flat, 0) for name, value in values.items()}, area == 0)
