"""A toy: the share of a map that lies on the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsigma.engine.metrics.base import HeatmapMetric, MetricContext, MetricResult, MetricSpec, Skip, constant


@dataclass(frozen=True)
class Foo(HeatmapMetric):
    """Sum of |map| inside the object's mask over the sum of all; 0 for a constant map.

    Args:
        reduction: of the channels.
    """

    needs_masks: ClassVar[bool] = True

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The share."""
        return (MetricSpec("foo", "Foo", "higher", "share of the map that lies on the object"),)

    def of_heatmaps(self, subject: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the share; no pass of the network."""
        assert subject.masks is not None  # checked by the base
        mass, mask = heatmaps.abs().flatten(1), subject.masks.flatten(1)
        empty = mask.sum(1) == 0
        share = ((mass * mask).sum(1) / mass.sum(1)).masked_fill(constant(heatmaps), 0)
        return MetricResult({"foo": share.masked_fill(empty, torch.nan)}, {"foo": empty.long() * Skip.EMPTY_MASK})
