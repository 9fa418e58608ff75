"""Infidelity: how far an attribution is from predicting what the removal of random squares costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Reduction
from robustsigma.engine.metrics.base import HeatmapMetric, MetricContext, MetricResult, MetricSpec, constant
from robustsigma.engine.metrics.masked_scores import MaskBaseline, baseline_images, target_scores
from robustsigma.engine.scores import Score, target_score


@dataclass(frozen=True)
class Infidelity(HeatmapMetric):
    """Expected squared error of an attribution as a prediction (Yeh et al., 2019, definition 2.1), by square removal.

    A square of random size and place is replaced by a baseline; the attribution predicts that the score falls by
    the sum of its values there. That is the paper's I for attributions that sum to a difference of scores (what captum
    calls multiplied by the inputs), whose entries are 1 inside the square. A constant map predicts nothing but the area
    and is evaluated as a map of zeros.

    Args:
        samples: squares for each image.
        sides: smallest and largest side of a square, as shares of the image's shorter side.
        baseline: what a square becomes: "mean", "blur" or "black".
        normalize: multiply each attribution by the factor that fits best, as captum's option of that name does, so
            that methods of any unit compare.
        score: score whose fall is predicted.
        reduction: how channels become one; signs count.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> Infidelity()(context, IntegratedGradients()(classifier, images, labels)).values["infidelity"]
    """

    samples: int = 100
    sides: tuple[float, float] = (0.1, 0.5)
    baseline: MaskBaseline = "mean"
    normalize: bool = True
    score: Score = "logit"
    reduction: Reduction = field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        validation.integer("samples", self.samples, 1)
        validation.shares("sides", self.sides)
        if len(self.sides) != 2 or not 0 < self.sides[0] <= self.sides[1]:
            raise validation.fail("sides", "two shares in (0, 1], the smaller first", repr(self.sides))

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The infidelity."""
        about = f"squared error in predicting the {self.score} lost by a random square turned to {self.baseline}"
        return (MetricSpec("infidelity", "Infidelity", "lower", about + (", best scale" if self.normalize else "")),)

    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the infidelity; the first call for a context costs a forward pass for each square."""
        squares = context.shared(("squares", self.samples, self.sides), lambda: self._squares(context))
        key = ("infidelity", self.samples, self.sides, self.baseline, self.score)
        costs = context.shared(key, lambda: self._costs(context, squares))
        predicted = _sums(heatmaps, squares).masked_fill(constant(heatmaps)[:, None], 0)
        return MetricResult({"infidelity": infidelity(predicted, costs, normalize=self.normalize)})

    def _squares(self, context: MetricContext) -> Tensor:
        """Return the top, left, bottom and right of each square, int64 (B, samples, 4); the last two are outside."""
        height, width = context.images.shape[2:]
        drawn = noise.uniform(noise.fold(context.seeds, "squares"), (self.samples, 3), torch.float64)
        low, high = (max(1, round(share * min(height, width))) for share in self.sides)
        side = low + (drawn[..., 0] * (high - low + 1)).long()
        top = (drawn[..., 1] * (height - side + 1)).long()
        left = (drawn[..., 2] * (width - side + 1)).long()
        return torch.stack([top, left, top + side, left + side], 2)

    def _costs(self, context: MetricContext, squares: Tensor) -> Tensor:
        """Return how far the score falls with each square, float64 (B, samples)."""
        removed = baseline_images(self.baseline, context)
        height, width = removed.shape[2:]
        y = torch.arange(height, device=removed.device)
        x = torch.arange(width, device=removed.device)

        def make(rows: Tensor, copies: Tensor) -> Tensor:
            top, left, bottom, right = squares[rows, copies, :, None].unbind(1)
            tall, wide = (y >= top) & (y < bottom), (x >= left) & (x < right)
            inside = tall[:, None, :, None] & wide[:, None, None, :]
            return torch.where(inside, removed[rows], context.images[rows])

        full = target_score(context.logits, context.target, self.score).double()[:, None]
        return full - target_scores(context, self.samples, make, self.score)


def infidelity(predicted: Tensor, costs: Tensor, *, normalize: bool) -> Tensor:
    """Return the mean squared error (B,) of predictions (B, samples) of costs (B, samples).

    Args:
        predicted: sums of attributions.
        costs: what the perturbations cost.
        normalize: multiply the predictions of each image by the factor that makes the error smallest.
    """
    if normalize:
        size = predicted.square().mean(1)
        fitted = (predicted * costs).mean(1) / size.where(size > 0, torch.ones_like(size))
        predicted = predicted * fitted[:, None]
    return (predicted - costs).square().mean(1)


def _sums(heatmaps: Tensor, squares: Tensor) -> Tensor:
    """Return the sum of each map in each square, (B, samples), from a table of sums."""
    count, height, width = heatmaps.shape
    table = heatmaps.new_zeros(count, height + 1, width + 1)
    table[:, 1:, 1:] = heatmaps.cumsum(1).cumsum(2)
    rows = torch.arange(count, device=heatmaps.device)[:, None]
    top, left, bottom, right = squares.unbind(2)
    return table[rows, bottom, right] - table[rows, top, right] - table[rows, bottom, left] + table[rows, top, left]
