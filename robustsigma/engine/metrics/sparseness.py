"""Sparseness: on how few pixels does a map lie?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsigma.engine.metrics.base import HeatmapMetric, MetricContext, MetricGroup, MetricResult, MetricSpec


@dataclass(frozen=True)
class Sparseness(HeatmapMetric):
    """Gini index of a map's absolute values (Chalasani et al., 2020, section 3).

    0 for a constant map (also of zeros), 1 - 1 / N for a map of N pixels with a single one, 1 / 3 for uniform random
    values. It says nothing about whether the map is right: it is not compared with random maps.

    Args:
        reduction: how channels become one.

    Example:
        >>> Sparseness().quantities[0].title
        'Sparseness'
    """

    group: ClassVar[MetricGroup] = "complexity"

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The Gini index."""
        return (MetricSpec("sparseness", "Sparseness", "higher", "Gini index of the map's absolute values"),)

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the index; no pass of the network."""
        ordered = heatmaps.flatten(1).abs().sort(dim=1).values
        count, total = ordered.shape[1], ordered.sum(1)
        weights = 2 * torch.arange(1, count + 1, device=ordered.device, dtype=ordered.dtype) - count - 1
        gini = (ordered * weights).sum(1) / (count * total).where(total > 0, 1)
        return MetricResult({"sparseness": gini.clamp(min=0)})
