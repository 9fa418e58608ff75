"""Localization: does the heatmap lie on the object that people marked?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.metrics.base import HeatmapMetric, MetricContext, MetricResult, MetricSpec, Skip, constant
from robustsigma.engine.metrics.ranking import ranks


@dataclass(frozen=True)
class Localization(HeatmapMetric):
    """Intersection over union with the object's mask at three thresholds, and the pointing game.

    - `iou`: of as many of the highest pixels as the mask has, so that no threshold is chosen (equal area).
    - `iou_fixed`: of the pixels at or above `threshold`, after the map's range is mapped to [0, 1].
    - `iou_best`: at the threshold that is best for the image: an upper bound, since it is found with the mask.
    - `pointing_game`: is the highest pixel inside the mask (Zhang et al., 2018, without a tolerance)? Of several
      equally high ones, the share that is inside.

    A constant map points nowhere and has 0 in all of them. Images with an empty mask are skipped.

    Args:
        threshold: of `iou_fixed`, in (0, 1].
        marked: a pixel belongs to the object where a soft mask is at least this, in (0, 1].
        variant: "authors" gives what Saliency-Bench's code computes (Zhang et al., 2023): `iou` and `precision` of
            all pixels above 0, `recall` of those above .5, both against masks cut to integers, so that a soft mask
            counts only where it is 1; `pointing_game` is 1 where any of the highest pixels has a positive mask. NaN
            is skipped. A dense positive map has the mask's share of the image as its IoU, whatever it shows, and a
            constant map always hits.
        reduction: of the channels.
    """

    threshold: float = 0.5
    marked: float = 0.5
    variant: Literal["sound", "authors"] = "sound"
    needs_masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("threshold", self.threshold, 0, 1, open_low=True)
        validation.number("marked", self.marked, 0, 1, open_low=True)
        validation.choice("variant", self.variant, ("sound", "authors"))

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The overlaps and the pointing game, or what Saliency-Bench has."""
        hit = MetricSpec("pointing_game", "Pointing game", "higher", "whether the highest pixel lies on the object")
        if self.variant == "authors":
            return (
                MetricSpec("iou", "IoU > 0", "higher", "overlap of all positive pixels with the object"),
                hit,
                MetricSpec("precision", "Precision", "higher", "share of the positive pixels that lie on the object"),
                MetricSpec("recall", "Recall", "higher", "share of the object with values above .5"),
            )
        return (
            MetricSpec("iou", "mIoU", "higher", "overlap of the highest pixels, as many as the object has, with it"),
            MetricSpec("iou_fixed", f"mIoU at {self.threshold:g}", "higher", "overlap at a fixed threshold"),
            MetricSpec("iou_best", "mIoU, best", "higher", "overlap at each image's best threshold: an upper bound"),
            hit,
        )

    def of_heatmaps(self, subject: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the overlaps; no pass of the network."""
        assert subject.masks is not None  # checked by the base
        if self.variant == "authors":
            values, empty = _saliency_bench(heatmaps, subject.masks), subject.masks.flatten(1).sum(1) == 0
        else:
            inside = subject.masks >= self.marked
            values, empty = self._sound(subject, heatmaps, inside), ~inside.flatten(1).any(1)
        skips = {}
        for name, value in values.items():
            codes = empty.long() * Skip.EMPTY_MASK
            skips[name] = torch.where(value.isnan() & ~empty, int(Skip.NO_VARIANCE), codes)
            values[name] = value.masked_fill(empty, torch.nan)
        return MetricResult(values, skips)

    def _sound(self, subject: MetricContext, heatmaps: Tensor, inside: Tensor) -> dict[str, Tensor]:
        mask, flat = inside.flatten(1), heatmaps.flatten(1)
        order = ranks(heatmaps, subject.seeds).argsort(dim=1)
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
            "iou_fixed": _iou(above, mask),
            "iou_best": overlaps.where(cut, 0).amax(1),
            "pointing_game": (top & mask).sum(1).double() / top.sum(1),
        }
        return {name: value.masked_fill(constant(heatmaps), 0) for name, value in values.items()}


def _iou(a: Tensor, b: Tensor) -> Tensor:
    return (a & b).sum(1).double() / (a | b).sum(1)


def _saliency_bench(heatmaps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return each image's values as Saliency-Bench's code computes them; 0 / 0 is NaN, and 0 for the recall."""
    flat, soft = heatmaps.flatten(1), masks.flatten(1)
    mask, positive = soft.long() != 0, flat > 0
    top = flat == flat.amax(1, keepdim=True)
    recall = (mask & (flat > 0.5)).sum(1).double() / mask.sum(1)
    return {
        "iou": _iou(positive, mask),
        "pointing_game": (top & (soft > 0)).any(1).double(),
        "precision": (positive & mask).sum(1).double() / positive.sum(1),
        "recall": recall.where(mask.any(1), torch.zeros_like(recall)),
    }
