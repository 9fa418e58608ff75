"""DiffID: accuracy that is kept without the least relevant values, minus accuracy kept without the most relevant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import Attribution
from robustsigma.engine.attributors.base import Reduction, reduce_channels
from robustsigma.engine.metrics.base import AttributionMetric, Curve, MetricContext, MetricResult, MetricSpec
from robustsigma.engine.metrics.masked_scores import score_copies
from robustsigma.engine.metrics.ranking import TieBreak, ranks
from robustsigma.engine.scores import target_score

Retention = Literal["accuracy", "confidence"]
Features = Literal["pixels", "values"]


@dataclass(frozen=True)
class DiffID(AttributionMetric):
    """Difference of insertion and deletion at given ratios, as in the code of SIG (Kim et al., KDD 2026).

    At each ratio, that share of the features is replaced by the mean of the features that are left, in the units of the
    normalized image: the most relevant ones for deletion, the least relevant ones for insertion. What is measured is
    whether the class is still predicted, or the confidence that is left. Values are means over the ratios; the
    difference is insertion minus deletion.

    Args:
        ratios: shares of the features, increasing, each in (0, 1).
        retention: "accuracy" is 1 where the class is still predicted, else 0; "confidence" is the target's probability
            over that of the image, at most 1.
        tie_break: the order of equal features; see `robustsigma.engine.metrics.ranking.ranks`.
        features: "pixels", or "values": each channel of each pixel, ordered by absolute value, as in the code of SIG; a
            map (B, H, W) is then that of every channel.
        reduction: how channels become one, where the features are pixels.

    Example:
        >>> DiffID(retention="confidence", features="values").quantities[2].title
        'DiffID'
    """

    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    retention: Retention = "accuracy"
    tie_break: TieBreak = "random"
    features: Features = "pixels"
    reduction: Reduction = field(default="abs_sum", kw_only=True)

    def __post_init__(self) -> None:
        validation.shares("ratios", self.ratios, inside=True, increasing=True)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """Insertion, deletion and their difference."""
        about = f"{self.retention} without the {{}} relevant, mean over ratios"
        return (
            MetricSpec("diffid_insertion", "DiffID insertion", "higher", about.format("least")),
            MetricSpec("diffid_deletion", "DiffID deletion", "lower", about.format("most")),
            MetricSpec("diffid", "DiffID", "higher", "insertion minus deletion, mean over ratios"),
        )

    def measure(self, context: MetricContext, attribution: Attribution | Tensor) -> MetricResult:
        """Return the means and both curves; 2 forward passes for each ratio."""
        features = self._features(context, attribution)
        orders = {
            "diffid_insertion": ranks(-features, context.seeds, self.tie_break),
            "diffid_deletion": ranks(features, context.seeds, self.tie_break),
        }
        curves = {name: self._curve(context, order.reshape(features.shape)) for name, order in orders.items()}
        values = {name: curve.mean(1) for name, curve in curves.items()}
        grid = torch.tensor(self.ratios, dtype=torch.float64, device=features.device)
        return MetricResult(
            {**values, "diffid": values["diffid_insertion"] - values["diffid_deletion"]},
            {},
            {name: Curve(grid, curve, "share replaced", self.retention) for name, curve in curves.items()},
        )

    def _features(self, context: MetricContext, attribution: Attribution | Tensor) -> Tensor:
        """Return float64 (B, F, H, W), F 1 for pixels and the number of channels for values."""
        values = attribution.values if isinstance(attribution, Attribution) else attribution
        values = values.detach().to(context.images.device, torch.float64)
        if self.features == "values":
            return (values[:, None].expand(context.images.shape) if values.ndim == 3 else values).abs()
        return (values if values.ndim == 3 else reduce_channels(values, self.reduction))[:, None]

    def _curve(self, context: MetricContext, order: Tensor) -> Tensor:
        """Return what is kept at each ratio, float64 (B, ratios)."""
        counts = torch.tensor([int(order[0].numel() * ratio) for ratio in self.ratios], device=order.device)
        mean, std = (part.to(context.images) for part in (context.classifier.mean, context.classifier.std))
        bounds = context.classifier.bounds

        def make(rows: Tensor, copies: Tensor) -> Tensor:
            images = context.images[rows]
            gone = (order[rows] < counts[copies].reshape(-1, 1, 1, 1)).expand_as(images)
            normalized = ((images - mean) / std).double()
            left = normalized.masked_fill(gone, 0).flatten(1).sum(1) / (~gone).flatten(1).sum(1)
            fill = (left.to(images).reshape(-1, 1, 1, 1) * std + mean).clamp(*bounds)
            return torch.where(gone, fill, images)

        if self.retention == "accuracy":
            return score_copies(context, len(counts), make, lambda logits, y: (logits.argmax(1) == y).double())
        full = target_score(context.logits, context.target, "prob").double()[:, None]
        kept = score_copies(context, len(counts), make, lambda logits, y: target_score(logits, y, "prob").double())
        return (kept / full.clamp(min=1e-8)).clamp(0, 1)
