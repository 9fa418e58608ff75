"""Published code of Integrated Gradients and of methods that build on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.credible_path import CrediblePath
from robustsigma.engine.attributors.idg import IDG
from robustsigma.engine.attributors.integrated_gradients import IntegratedGradients, quadrature
from robustsigma.engine.attributors.left_integrated_gradients import LeftIntegratedGradients, rise_to
from robustsigma.engine.attributors.path_methods import Line, LineGradients, PathResult


@dataclass(frozen=True)
class CaptumIntegratedGradients(IntegratedGradients):
    """Captum's IG: all points but Gauss-Legendre's and all weights are rounded to single precision.

    Its trapezoids are divided by `steps`, as the other rules' parts, where there are steps - 1 of them; they sum to
    1 - 1 / steps of the integral. It has no "inclusive_mean".

    Example:
        >>> CaptumIntegratedGradients()(classifier, images, target, seed=0).heatmap()
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "inclusive_mean":
            raise validation.fail("rule", "one of captum's", repr(self.rule))

    def _quadrature(self) -> tuple[list[float], list[float]]:
        points, weights = quadrature(self.rule, self.steps)
        if self.rule != "gauss_legendre":
            points = torch.linspace(points[0], points[-1], self.steps, dtype=torch.float32).tolist()
        if self.rule == "trapezoid":
            weights = [weight * (1 - 1 / self.steps) for weight in weights]
        return points, torch.tensor(weights, dtype=torch.float32).tolist()


@dataclass(frozen=True)
class AuthorsLeftIntegratedGradients(LeftIntegratedGradients):
    """Left-IG's code: it keeps no point where the first is already above the threshold.

    That also holds for every image with F(x) < F(x'), so such images get an all-zero map.

    Example:
        >>> AuthorsLeftIntegratedGradients()(classifier, images, target, seed=0).heatmap()
    """

    def integrate(self, line: Line) -> PathResult:
        """Return the sum over the points before the cut."""
        # Points are in float32, whatever the precision of the network: captum's, on which the code builds.
        points = torch.linspace(1 / self.steps, 1, self.steps, dtype=torch.float32, device="cpu").tolist()
        threshold = line.low + self.fraction * (line.high - line.low)
        return self._sum_before(line, points, threshold, torch.ones_like(threshold, dtype=torch.bool), 0)


@dataclass(frozen=True)
class IDGRepositoryLeftIntegratedGradients(LeftIntegratedGradients):
    """The IDG authors' Left-IG: points k / (steps - 1), threshold fraction * max F, the mean over the kept points.

    The mean leaves out how long the kept part is. A single point is kept where no point or the first is above the
    threshold. It costs `steps` forward passes more, which find the threshold.

    Example:
        >>> IDGRepositoryLeftIntegratedGradients()(classifier, images, target, seed=0).heatmap()
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.integer("steps", self.steps, 2)

    def integrate(self, line: Line) -> PathResult:
        """Return the mean over the points before the cut."""
        points = line.expanded(quadrature("inclusive_mean", self.steps)[0])
        scores = line.scores(points)
        above = scores > self.fraction * scores.amax(1, keepdim=True)
        # argmax gives the first True, and 0 where there is none.
        kept = above.long().argmax(1).clamp(min=1)
        order = torch.arange(self.steps, device=points.device)
        weights = (order < kept[:, None]).to(points.dtype) / kept[:, None]
        values, curve = line.weighted_sum(points, weights)
        return PathResult(line, values, curve, drop=rise_to(line, curve, kept), steps=kept, forwards=self.steps)


@dataclass(frozen=True)
class AuthorsIDG(IDG):
    """IDG's code; see `authors_schedule`. Its values are also 1 / steps as large.

    Example:
        >>> AuthorsIDG()(classifier, images, target, seed=0).heatmap()
    """

    intervals: int | None = field(default=None, init=False, repr=False)
    sampling: Literal["adaptive", "uniform"] = field(default="adaptive", init=False, repr=False)
    follow: Literal["rises", "changes"] = field(default="rises", init=False, repr=False)
    place: Literal["middle", "left"] = field(default="middle", init=False, repr=False)
    factor: Literal["exact", "difference"] = field(default="difference", init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.integer("steps", self.steps, 2)

    def integrate(self, line: Line) -> PathResult:
        """Return IDG along one line."""
        scores = line.scores(line.expanded(quadrature("inclusive_mean", self.steps)[0]))
        points, weights = authors_schedule(authors_slopes(scores))
        return self._weighted_path(line, points, weights / self.steps, self.steps)


def authors_slopes(scores: Tensor) -> Tensor:
    """Return the backward differences (B, S) of scores at S equally spaced points, 0 at the first."""
    rises = scores.diff(dim=1) * (scores.shape[1] - 1)
    return torch.nn.functional.pad(rises, (1, 0))


def authors_schedule(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points and weights (B, S) that IDG's code computes from its slopes (B, S).

    Slopes are scaled to [0, 1]; an entry gets the whole part of its share of S samples, and what is left goes one
    each to the largest shares among the empty entries. Entries that stay empty do not advance the position, so all
    later samples slide towards the baseline. For equal slopes the code divides 0 by 0; on x86 its casts then give one
    sample each, and so does this function.
    """
    steps = slopes.shape[1]
    width = 1 / (steps - 1)
    low, high = slopes.aminmax(dim=1, keepdim=True)
    share = (slopes - low) / torch.where(high > low, high - low, 1)
    share = torch.cat([torch.zeros_like(share[:, :1]), share[:, 1:]], 1)
    total = share.sum(1, keepdim=True)
    flat = total <= 0
    share = torch.where(flat, 1 / steps, share / torch.where(flat, 1, total)) * steps
    counts = torch.where(flat, 1, share.trunc())
    # Filled entries sort last. Equal shares are in the order of the code's own sort, which is not stable.
    rank = torch.where(counts > 0, -1, share).sort(dim=1).indices.flip(1).argsort(1)
    counts = (counts + ((counts == 0) & (rank < steps - counts.sum(1, keepdim=True)))).long()
    ends = counts.cumsum(1)
    place = torch.arange(steps, device=slopes.device).expand(len(slopes), -1).contiguous()
    entry = torch.searchsorted(ends, place, right=True)
    filled = (counts > 0).cumsum(1) - 1
    count = counts.gather(1, entry)
    within = place - (ends - counts).gather(1, entry)
    points = width * (filled.gather(1, entry) + within.double() / count)
    return points.to(slopes), (width / count.double()).to(slopes)


@dataclass(frozen=True)
class LiteralCrediblePath(CrediblePath):
    """The credible path's algorithms read literally, but for separate sums and a count of 0; no code was published.

    Cross-entropy is descended with equal steps, line 6 pushes pixels off the image's before line 7 clips, and |dF/dx|
    at the image is compared strictly with |(x - x~) dF/dx~|.

    Example:
        >>> LiteralCrediblePath()(classifier, images, target, seed=0).heatmap()
    """

    objective: Literal["logits", "cross_entropy"] = field(default="cross_entropy", init=False, repr=False)

    def _step_sizes(self, size: Tensor, better: Tensor) -> Tensor:
        return size

    def _apart(self, point: Tensor, images: Tensor, bounds: tuple[float, float]) -> Tensor:
        close = (images - point).abs() < self.gap
        return torch.where(close, point - (images - point).sign() * self.gap, point).clamp(*bounds)

    def _valid(self, at_image: Tensor, part: LineGradients, points: Tensor) -> Tensor:
        along = part.gradients * (1 - points)[..., None, None, None] * part.delta
        smaller, larger = (at_image.abs(), along.abs()) if self.reverse else (along.abs(), at_image.abs())
        return (along.sign() == at_image.sign()) & (smaller < larger)
