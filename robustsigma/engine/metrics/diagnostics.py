"""Metrics of an attributor's own result: completeness, standard error over paths, and cost."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import Attribution
from robustsigma.engine.metrics.base import (
    AttributionMetric,
    MetricContext,
    MetricGroup,
    MetricResult,
    MetricSpec,
    Skip,
)

_SMALLEST_DROP = 1e-6


class ResultMetric(AttributionMetric):
    """A metric of an attributor's result, which a bare tensor does not have."""

    group: ClassVar[MetricGroup] = "consistency"

    @final
    def measure(self, context: MetricContext, attribution: Attribution | Tensor) -> MetricResult:
        """Compute the metric of a result."""
        if not isinstance(attribution, Attribution):
            raise validation.fail("attribution", f"an Attribution, for {type(self).__name__}", "a tensor")
        return self.of_result(attribution)

    @abstractmethod
    def of_result(self, result: Attribution) -> MetricResult:
        """Compute the metric."""


@dataclass(frozen=True)
class CompletenessGap(ResultMetric):
    """|sum of values - drop| / |drop|: the share of the score's drop that the values do not account for.

    Completeness is the axiom of Sundararajan et al. (2017, section 3). Images along whose path the score does not
    change, and methods without a path, are skipped.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> CompletenessGap()(context, IntegratedGradients()(classifier, images, labels)).values["completeness_gap"]
    """

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The gap."""
        about = "share of the score's drop along the path that the attribution does not account for"
        return (MetricSpec("completeness_gap", "Completeness gap", "lower", about),)

    def of_result(self, result: Attribution) -> MetricResult:
        """Return the gaps."""
        size = result.drop.abs().double()
        flat = size <= _SMALLEST_DROP
        gap = (result.gap().double() / size.where(~flat, torch.ones_like(size))).masked_fill(flat, torch.nan)
        return MetricResult({"completeness_gap": gap}, {"completeness_gap": flat.long() * Skip.NO_DROP})


@dataclass(frozen=True)
class RelativeStandardError(ResultMetric):
    """Standard error of the heatmap over paths, over the heatmap, both summed over pixels (abs_sum reduction).

    `Sigma.relative_stderr` is another number: it takes root sums of squares, and the mean of the paths' heatmaps, which
    is larger than the heatmap of the mean.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> RelativeStandardError()(context, SmoothGrad(Gradient())(classifier, images, labels, seed=0)).values
    """

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The relative standard error."""
        about = "standard error of the heatmap over the method's paths, as a share of the heatmap"
        return (MetricSpec("relative_stderr", "Relative std. error", "lower", about),)

    def of_result(self, result: Attribution) -> MetricResult:
        """Return the errors; methods of one path are skipped, and so are maps of zeros."""
        if result.stderr is None:
            skips = torch.full_like(result.target, int(Skip.ONE_PATH))
            return MetricResult(
                {"relative_stderr": torch.full_like(skips, torch.nan, dtype=torch.float64)}, {"relative_stderr": skips}
            )
        size = result.heatmap().double().flatten(1).sum(1)
        empty = size == 0
        error = result.stderr.double().flatten(1).sum(1) / size.where(~empty, torch.ones_like(size))
        return MetricResult(
            {"relative_stderr": error.masked_fill(empty, torch.nan)}, {"relative_stderr": empty.long() * Skip.NO_DROP}
        )


@dataclass(frozen=True)
class Cost(ResultMetric):
    """Passes of the network spent on each image.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> Cost()(context, IntegratedGradients()(classifier, images, labels)).values["forwards"]
    """

    group: ClassVar[MetricGroup] = "cost"

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """Forward and backward passes."""
        return (
            MetricSpec("forwards", "Forward passes", "lower", "forward passes of the network for each image"),
            MetricSpec("backwards", "Backward passes", "lower", "backward passes of the network for each image"),
        )

    def of_result(self, result: Attribution) -> MetricResult:
        """Return the passes."""
        return MetricResult({"forwards": result.forwards.double(), "backwards": result.backwards.double()})
