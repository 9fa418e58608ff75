"""Localization: does the heatmap lie on the annotated object?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import (
    HeatmapMetric,
    MetricContext,
    MetricGroup,
    MetricResult,
    MetricSpec,
    Skip,
    constant,
)
from robustsigma.engine.metrics.ranking import ranks


@dataclass(frozen=True)
class Localization(HeatmapMetric):
    """Intersection over union with the object's mask at three thresholds, and the pointing game.

    - `iou`: of as many of the highest pixels as the mask has, so that no threshold is chosen (equal area).
    - `iou_fixed`: of the pixels at or above `threshold`, after the map's range is mapped to [0, 1].
    - `iou_best`: at the threshold that is best for the image: an upper bound, since it is found with the mask.
    - `pointing_game`: is the highest pixel inside the mask (Zhang et al., 2018, without a tolerance)? Of several
      equally high ones, the share that is inside.

    A constant map has 0 in all of them. Images with an empty mask are skipped.

    Args:
        threshold: threshold of `iou_fixed`, in (0, 1].
        marked: a pixel belongs to the object where a soft mask is at least this, in (0, 1].
        reduction: how channels become one.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> Localization()(context, IntegratedGradients()(classifier, images, labels)).values["iou"]
    """

    threshold: float = 0.5
    marked: float = 0.5
    needs_masks: ClassVar[bool] = True
    group: ClassVar[MetricGroup] = "localization"

    def __post_init__(self) -> None:
        validation.number("threshold", self.threshold, 0, 1, open_low=True)
        validation.number("marked", self.marked, 0, 1, open_low=True)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The overlaps and the pointing game."""
        return (
            MetricSpec("iou", "mIoU", "higher", "overlap of the highest pixels, as many as the object has, with it"),
            MetricSpec("iou_fixed", f"mIoU at {self.threshold:g}", "higher", "overlap at a fixed threshold"),
            MetricSpec("iou_best", "mIoU, best", "higher", "overlap at each image's best threshold: an upper bound"),
            MetricSpec("pointing_game", "Pointing game", "higher", "whether the highest pixel lies on the object"),
        )

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the overlaps; no pass of the network."""
        assert context.masks is not None  # checked by the base
        mask, flat = (context.masks >= self.marked).flatten(1), heatmaps.flatten(1)
        order = ranks(heatmaps, context.seeds).argsort(dim=1)
        hits = mask.gather(1, order).cumsum(1).double()  # among the k + 1 highest
        area, taken = mask.sum(1, keepdim=True), torch.arange(1, flat.shape[1] + 1, device=flat.device)
        overlaps = hits / (taken + area - hits)
        ordered = flat.gather(1, order)
        # A threshold takes all pixels of a value, or none.
        cut = torch.cat([ordered[:, 1:] != ordered[:, :-1], torch.ones_like(mask[:, :1])], 1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        above = flat >= low + self.threshold * (high - low)
        top = flat == high
        values = {
            "iou": overlaps.gather(1, (area - 1).clamp(min=0))[:, 0],
            "iou_fixed": intersection_over_union(above, mask),
            "iou_best": overlaps.where(cut, 0).amax(1),
            "pointing_game": (top & mask).sum(1).double() / top.sum(1),
        }
        flat_map = constant(heatmaps)
        return with_skips({name: value.masked_fill(flat_map, 0) for name, value in values.items()}, area[:, 0] == 0)


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Return the overlap (B,) of two sets of pixels, bool (B, N)."""
    return (a & b).sum(1).double() / (a | b).sum(1)


def with_skips(values: dict[str, Tensor], empty: Tensor) -> MetricResult:
    """Return values (B,) as a result that skips images with an `empty` mask, bool (B,), and values that are NaN."""
    skips = {
        name: torch.where(value.isnan() & ~empty, int(Skip.NO_VARIANCE), empty.long() * Skip.EMPTY_MASK)
        for name, value in values.items()
    }
    return MetricResult({name: value.masked_fill(empty, torch.nan) for name, value in values.items()}, skips)
