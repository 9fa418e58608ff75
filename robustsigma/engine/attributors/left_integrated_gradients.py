"""Left Integrated Gradients: the part of the line before the score saturates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Baseline, draws
from robustsigma.engine.attributors.integrated_gradients import quadrature
from robustsigma.engine.attributors.straight_line import Line, Path, average_over_baselines
from robustsigma.engine.classifier import SCORES, Classifier, Score

_VARIANTS = ("sound", "authors", "idg_repo")


@dataclass(frozen=True)
class LeftIntegratedGradients(Attributor):
    """Integrated Gradients up to the saturated part of the line (Miglani et al., 2020).

    Gradients are summed by the right-hand rule at a_k = k / steps for the k before the first at which
    F > F(x') + fraction (F(x) - F(x')). The result's `steps` say how many those are, `drop` is F at the last of them
    less F(x'), which is what `values` sum to but for the rule's O(1 / steps); the curve covers the whole line.

    Decided where the authors' code leaves an image without a map: at least one point is kept; where
    F(x) <= F(x') there is no rise to cut, so the whole line is taken and `converged` is False.

    Args:
        steps: points on the line, a gradient each.
        fraction: of the rise of F, in (0, 1]; the authors use 0.9 and 0.95.
        baseline: x', as of `IntegratedGradients`.
        score: F.
        variant: "authors" keeps no point where the first is already above the threshold, which also holds for
            every image with F(x) < F(x'): an all-zero map. "idg_repo" is the IDG authors' form of the method:
            points k / (steps - 1), threshold fraction * max F, the mean over the kept points, which leaves out
            how long the kept part is, and a single point where no point or the first is above the threshold.
    """

    steps: int = 200
    fraction: float = 0.9
    baseline: Baseline = "black"
    score: Score = "logit"
    variant: Literal["sound", "authors", "idg_repo"] = "sound"

    def __post_init__(self) -> None:
        validation.choice("variant", self.variant, _VARIANTS)
        validation.integer("steps", self.steps, 2 if self.variant == "idg_repo" else 1)
        validation.number("fraction", self.fraction, 0, 1, open_low=True)
        validation.choice("score", self.score, SCORES)
        object.__setattr__(self, "baseline", baselines.checked(self.baseline))

    @property
    def stochastic(self) -> bool:
        """Whether a baseline is drawn."""
        return draws(self.baseline)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return Left-IG; passes as of IG, and `steps` forward passes more for "idg_repo", whose threshold needs them.

        Whether a point is kept is known only when its score is, so points after the cut are computed as well.
        """
        bases = baselines.make(self.baseline, images, seeds, classifier.bounds)
        integrate = self._mean_of_first if self.variant == "idg_repo" else self._sum_of_first
        return average_over_baselines(classifier, images, target, logits, self.score, bases, integrate)

    def _points(self) -> list[float]:
        if self.variant == "authors":
            # Rounded to float32, whatever the precision of the network: captum's, which the authors build on.
            return torch.linspace(1 / self.steps, 1, self.steps, dtype=torch.float32, device="cpu").tolist()
        return quadrature("right", self.steps)[0]

    def _sum_of_first(self, line: Line) -> Path:
        points = line.everywhere(self._points())
        rising = line.high > line.low
        threshold = line.low + self.fraction * (line.high - line.low)
        if self.variant == "sound":
            threshold = torch.where(rising, threshold, torch.inf)
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        taken = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        stopped = torch.zeros_like(rising)
        for block in line.gradients(points):
            rows, columns = block.rows, block.columns
            above = (block.scores > threshold[rows, None]).cumsum(1) > 0
            cut = stopped[rows, None] | above
            stopped[rows] = cut[:, -1]
            if self.variant == "sound" and columns.start == 0:
                cut = cut.index_fill(1, torch.zeros(1, dtype=torch.int64, device=cut.device), False)
            values[rows] += block.weighted((~cut).to(values.dtype) / self.steps)
            curve[rows, columns] = block.scores
            taken[rows] += (~cut).sum(1)
        return Path.of(
            line,
            values,
            curve,
            drop=_reached(line, curve, taken),
            steps=taken,
            converged=rising | (self.variant == "authors"),
        )

    def _mean_of_first(self, line: Line) -> Path:
        points = line.everywhere(quadrature("inclusive_mean", self.steps)[0])
        scores = line.scores(points)
        above = scores > self.fraction * scores.amax(1, keepdim=True)
        # argmax gives the first True, and 0 where there is none.
        taken = above.long().argmax(1).clamp(min=1)
        order = torch.arange(self.steps, device=points.device)
        weights = (order < taken[:, None]).to(points.dtype) / taken[:, None]
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        for block in line.gradients(points):
            values[block.rows] += block.weighted(weights[block.rows, block.columns])
            curve[block.rows, block.columns] = block.scores
        return Path.of(line, values, curve, drop=_reached(line, curve, taken), steps=taken, forwards=self.steps)


def _reached(line: Line, curve: Tensor, taken: Tensor) -> Tensor:
    """Return the rise (B,) from the baseline to the last kept point."""
    last = curve.gather(1, (taken - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(taken > 0, last - line.low, 0)
