"""Infidelity: how far an attribution is from predicting what the removal of random squares costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Reduction
from robustsigma.engine.classifier import SCORES, Score, target_score
from robustsigma.engine.metrics.base import HeatmapMetric, MetricContext, MetricResult, MetricSpec, constant
from robustsigma.engine.metrics.scoring import score_copies
from robustsigma.engine.metrics.substrates import SUBSTRATES, Substrate, substrate


@dataclass(frozen=True)
class Infidelity(HeatmapMetric):
    """Expected squared error of an attribution as a prediction (Yeh et al., 2019, definition 2.1), by square removal.

    A square of random size and place is replaced by the substrate; the attribution predicts that the score falls by
    the sum of its values there. That is their I for attributions that sum to a difference of scores (what captum
    calls multiplied by the inputs), whose entries are 1 inside the square.

    Args:
        samples: squares for each image.
        sides: smallest and largest side of a square, as shares of the image's shorter side.
        removal: what a square becomes: "mean", "blur" or "black".
        normalize: multiply each attribution by the factor that fits best, as captum's option of that name does, so
            that methods of any unit compare.
        score: whose fall is predicted.
        reduction: of the channels; signs count.

    A constant map predicts nothing but the area, and is judged as a map of zeros.
    """

    samples: int = 100
    sides: tuple[float, float] = (0.1, 0.5)
    removal: Substrate = "mean"
    normalize: bool = True
    score: Score = "logit"
    reduction: Reduction = field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.integer("samples", self.samples, 1)
        validation.several("sides", self.sides)
        object.__setattr__(self, "sides", tuple(self.sides))
        for side in self.sides:
            validation.number("sides", side, 0, 1, open_low=True)
        if len(self.sides) != 2 or not 0 < self.sides[0] <= self.sides[1] <= 1:
            raise validation.fail("sides", "two shares in (0, 1], the smaller first", repr(self.sides))
        validation.choice("removal", self.removal, SUBSTRATES)
        validation.choice("score", self.score, SCORES)

    @property
    def quantities(self) -> tuple[MetricSpec, ...]:
        """The infidelity."""
        about = f"squared error in predicting the {self.score} lost by a random square turned to {self.removal}"
        return (MetricSpec("infidelity", "Infidelity", "lower", about + (", best scale" if self.normalize else "")),)

    def of_heatmaps(self, subject: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Return the infidelity; once for a subject, a forward pass for each square."""
        squares = subject.shared(("squares", self.samples, self.sides), lambda: self._squares(subject))
        key = ("infidelity", self.samples, self.sides, self.removal, self.score)
        costs = subject.shared(key, lambda: self._costs(subject, squares))
        predicted = _sums(heatmaps, squares).masked_fill(constant(heatmaps)[:, None], 0)
        return MetricResult({"infidelity": infidelity(predicted, costs, normalize=self.normalize)})

    def _squares(self, subject: MetricContext) -> Tensor:
        """Return the top, left, bottom and right of each square, int64 (B, samples, 4); the last two are outside."""
        height, width = subject.images.shape[2:]
        drawn = noise.uniform(noise.fold(subject.seeds, "squares"), (self.samples, 3), torch.float64)
        low, high = (max(1, round(share * min(height, width))) for share in self.sides)
        side = low + (drawn[..., 0] * (high - low + 1)).long()
        top = (drawn[..., 1] * (height - side + 1)).long()
        left = (drawn[..., 2] * (width - side + 1)).long()
        return torch.stack([top, left, top + side, left + side], 2)

    def _costs(self, subject: MetricContext, squares: Tensor) -> Tensor:
        """Return how far the score falls with each square, float64 (B, samples)."""
        removed = substrate(self.removal, subject)
        height, width = removed.shape[2:]
        y = torch.arange(height, device=removed.device)
        x = torch.arange(width, device=removed.device)

        def make(rows: Tensor, copies: Tensor) -> Tensor:
            top, left, bottom, right = squares[rows, copies, :, None].unbind(1)
            tall, wide = (y >= top) & (y < bottom), (x >= left) & (x < right)
            inside = tall[:, None, :, None] & wide[:, None, None, :]
            return torch.where(inside, removed[rows], subject.images[rows])

        scores = score_copies(
            subject, self.samples, make, lambda logits, target: target_score(logits, target, self.score)
        )
        return target_score(subject.logits, subject.target, self.score).double()[:, None] - scores.double()


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
