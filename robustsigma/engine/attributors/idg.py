"""Integrated Decision Gradients, with adaptive sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Baseline, draws
from robustsigma.engine.attributors.integrated_gradients import Rule, quadrature
from robustsigma.engine.attributors.straight_line import Line, Path, average_over_baselines
from robustsigma.engine.classifier import SCORES, Classifier, Score

# Rises that sum to no more than this count as a flat curve.
_FLAT = 1e-12


def schedule(rises: Tensor, samples: int, place: Literal["middle", "left"] = "middle") -> tuple[Tensor, Tensor, Tensor]:
    """Return sample counts (B, N), points and weights (B, M) for the rises of F over N equal intervals of [0, 1].

    Counts are proportional to the rises and sum to M (largest remainders); an interval's samples lie at the middles
    of its equal parts and share its width. A flat curve counts as rising everywhere alike.

    Args:
        rises: non-negative, (B, N).
        samples: M.
        place: of a sample in its part, its middle or its start.
    """
    intervals = rises.shape[1]
    wide = rises.double()
    wide = torch.where(wide.sum(1, keepdim=True) > _FLAT, wide, 1)
    quota = samples * wide / wide.sum(1, keepdim=True)
    counts = quota.floor()
    # Rounding noise in F may not decide between equal rises. A power of two, for which no M / N lies on an edge.
    remainder = ((quota - counts) * 2**13).round()
    rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(1)
    counts = (counts + (rank < samples - counts.sum(1, keepdim=True))).long()
    ends = counts.cumsum(1)
    sample = torch.arange(samples, device=rises.device).expand(len(rises), -1).contiguous()
    interval = torch.searchsorted(ends, sample, right=True)
    within = sample - (ends - counts).gather(1, interval) + (0.5 if place == "middle" else 0.0)
    share = counts.gather(1, interval)
    points = (interval + within / share) / intervals
    return counts, points.to(rises), (1 / (intervals * share)).to(rises)


def authors_slopes(scores: Tensor) -> Tensor:
    """Return the backward differences (B, S) of scores at S equally spaced points, 0 at the first."""
    rises = scores.diff(dim=1) * (scores.shape[1] - 1)
    return torch.nn.functional.pad(rises, (1, 0))


def authors_schedule(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points and weights (B, S) that the authors' code makes of its slopes (B, S).

    Slopes are scaled to [0, 1]; an entry gets the whole part of its share of S samples, and what is left goes one
    each to the largest shares among the empty entries. Entries that stay empty do not advance the position, so all
    later samples slide towards the baseline. Equal slopes divide 0 by 0 there, and what the resulting casts happen
    to give on x86, one sample each, is what equal slopes get here.
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
    # Filled entries sort last. Equal shares stand as the code's own sort leaves them, which is not stable.
    rank = torch.where(counts > 0, -1, share).sort(dim=1).indices.flip(1).argsort(1)
    counts = (counts + ((counts == 0) & (rank < steps - counts.sum(1, keepdim=True)))).long()
    ends = counts.cumsum(1)
    place = torch.arange(steps, device=slopes.device).expand(len(slopes), -1).contiguous()
    entry = torch.searchsorted(ends, place, right=True)
    filled = (counts > 0).cumsum(1) - 1
    share_of = counts.gather(1, entry)
    within = place - (ends - counts).gather(1, entry)
    points = width * (filled.gather(1, entry) + within.double() / share_of)
    return points.to(slopes), (width / share_of.double()).to(slopes)


@dataclass(frozen=True)
class IDG(Attributor):
    """IDG_i = (x_i - x'_i) * integral over a of dF/dx_i * dF/da da (Walker et al., 2024, eq. 3).

    The importance factor dF/da favors the part of the line where F changes, so values do not sum to
    F(x) - F(x'): `drop` is that difference, and `gap()` says nothing against the result.

    Decided where the paper's algorithm 1 and its code slip: empty intervals advance along the line; falls of F
    get no samples unless asked for; counts sum to `steps`; no sample is lost to the first difference; there is no
    second mean.
    `converged` is False where F does not rise (or change) and the schedule is therefore uniform.

    Args:
        steps: M, points with a gradient.
        intervals: N of the forward passes that find where F rises; None takes `steps`, the paper's choice.
        sampling: "adaptive" puts samples where F rises, "uniform" at the middles of equal parts.
        follow: "rises" puts adaptive samples where F rises, "changes" also where it falls.
        place: of a sample in its part of the line, the "middle" or, as in the paper's algorithm 1, the "left" end. A
            first sample there lies on the baseline, where `factor="difference"` finds no growth.
        factor: dF/da. "exact" is the gradient along the line, which costs nothing more; "difference" is the paper's
            backward difference between neighboring samples.
        baseline: x', as of `IntegratedGradients`.
        score: F.
        variant: "authors" reproduces their code (see `authors_schedule`), whose values are also 1 / steps as large;
            `intervals` to `factor` must then be the defaults.
    """

    steps: int = 50
    intervals: int | None = None
    sampling: Literal["adaptive", "uniform"] = "adaptive"
    follow: Literal["rises", "changes"] = "rises"
    place: Literal["middle", "left"] = "middle"
    factor: Literal["exact", "difference"] = "exact"
    baseline: Baseline = "black"
    score: Score = "logit"
    variant: Literal["sound", "authors"] = "sound"

    def __post_init__(self) -> None:
        validation.choice("variant", self.variant, ("sound", "authors"))
        authors = self.variant == "authors"
        validation.integer("steps", self.steps, 2 if authors else 1)
        if self.intervals is not None:
            validation.integer("intervals", self.intervals, 1)
        validation.choice("sampling", self.sampling, ("adaptive", "uniform"))
        validation.choice("follow", self.follow, ("rises", "changes"))
        validation.choice("place", self.place, ("middle", "left"))
        validation.choice("factor", self.factor, ("exact", "difference"))
        validation.choice("score", self.score, SCORES)
        if authors:
            validation.defaults(self, ("intervals", "sampling", "follow", "place", "factor"), 'variant="authors"')
        object.__setattr__(self, "baseline", baselines.checked(self.baseline))

    @property
    def stochastic(self) -> bool:
        """Whether a baseline is drawn."""
        return draws(self.baseline)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return IDG; passes as of IG, and `intervals` - 1 forward passes more a baseline for adaptive sampling."""
        bases = baselines.make(self.baseline, images, seeds, classifier.bounds)
        integrate = self._authors_path if self.variant == "authors" else self._path
        return average_over_baselines(classifier, images, target, logits, self.score, bases, integrate)

    def _path(self, line: Line) -> Path:
        if self.sampling == "uniform":
            rule: Rule = "midpoint" if self.place == "middle" else "left"
            points, weights = map(line.everywhere, quadrature(rule, self.steps))
            return self._integrate(line, points, weights, 0, torch.ones_like(line.high, dtype=torch.bool))
        intervals = self.intervals or self.steps
        ends = line.everywhere([k / intervals for k in range(1, intervals)])
        scores = torch.cat([line.low[:, None], line.scores(ends), line.high[:, None]], 1)
        changes = scores.diff(dim=1)
        rises = changes.clamp(min=0) if self.follow == "rises" else changes.abs()
        _, points, weights = schedule(rises, self.steps, self.place)
        return self._integrate(line, points, weights, intervals - 1, rises.double().sum(1) > _FLAT)

    def _authors_path(self, line: Line) -> Path:
        scores = line.scores(line.everywhere(quadrature("inclusive_mean", self.steps)[0]))
        points, weights = authors_schedule(authors_slopes(scores))
        always = torch.ones_like(line.high, dtype=torch.bool)
        return self._integrate(line, points, weights / self.steps, self.steps, always)

    def _integrate(self, line: Line, points: Tensor, weights: Tensor, extra: int, converged: Tensor) -> Path:
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        # What differences are taken from: the sample before, at first the baseline; in the authors' code nothing.
        last_point, last_score = torch.zeros_like(line.low), line.low.clone()
        for block in line.gradients(points):
            rows, columns = block.rows, block.columns
            if self.factor == "exact" and self.variant == "sound":
                factor = (block.gradients * block.way).flatten(2).sum(2)
            else:
                before = torch.cat([last_point[rows, None], points[rows, columns][:, :-1]], 1)
                lower = torch.cat([last_score[rows, None], block.scores[:, :-1]], 1)
                apart = points[rows, columns] - before
                factor = torch.where(apart > 0, (block.scores - lower) / torch.where(apart > 0, apart, 1), 0)
                last_point[rows], last_score[rows] = points[rows, columns][:, -1], block.scores[:, -1]
            values[rows] += block.weighted(weights[rows, columns] * factor)
            curve[rows, columns] = block.scores
        return Path.of(line, values, curve, converged=converged, forwards=extra)
