"""Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Baseline, draws
from robustsigma.engine.attributors.straight_line import Line, Path, average_over_baselines
from robustsigma.engine.classifier import SCORES, Classifier, Score

Rule = Literal["gauss_legendre", "midpoint", "left", "right", "trapezoid", "inclusive_mean"]
RULES: tuple[Rule, ...] = get_args(Rule)
_MOST = 5000  # the points of Gauss-Legendre come from a matrix of steps x steps


@lru_cache(maxsize=64)
def quadrature(rule: Rule, steps: int) -> tuple[list[float], list[float]]:
    """Return `steps` ascending points in [0, 1] and weights that sum to 1."""
    validation.choice("rule", rule, RULES)
    if rule == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    if rule in ("trapezoid", "inclusive_mean"):
        if steps < 2:
            raise validation.fail("steps", f"at least 2 for the rule {rule!r}", steps)
        ends = [0.5 if rule == "trapezoid" and k in (0, steps - 1) else 1.0 for k in range(steps)]
        return [k / (steps - 1) for k in range(steps)], [w / sum(ends) for w in ends]
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return [(k + shift) / steps for k in range(steps)], [1 / steps] * steps


def as_captum(rule: Rule, steps: int) -> tuple[list[float], list[float]]:
    """Return captum's points and weights: all but Gauss-Legendre's points are rounded to single precision.

    Its trapezoids are divided by `steps`, as the other rules' shares, where there are steps - 1 of them.
    """
    points, weights = quadrature(rule, steps)
    if rule != "gauss_legendre":
        points = torch.linspace(points[0], points[-1], steps, dtype=torch.float32).tolist()
    if rule == "trapezoid":
        weights = [weight * (1 - 1 / steps) for weight in weights]
    return points, torch.tensor(weights, dtype=torch.float32).tolist()


@dataclass(frozen=True)
class IntegratedGradients(Attributor):
    """IG_i = (x_i - x'_i) * integral over a in [0, 1] of dF(x' + a (x - x'))/dx_i (Sundararajan et al., 2017, eq. 1).

    Args:
        steps: points of the quadrature, a gradient each; at most 5,000.
        rule: of the quadrature. Gauss-Legendre has the smallest completeness gap on smooth networks.
            "inclusive_mean" gives both end points full weight, which is off by O(1 / steps): the rule of PAIR's
            saliency library and of the IDG authors, for comparisons with their maps.
        baseline: x': "black", "white", "mean" (each channel's mean over the image), "gaussian" (0.5 + 0.25 times
            seeded normal noise, clipped), "blur" (the image under a Gaussian of a tenth of its shorter side),
            a tensor that expands to the images, a function of images, or of images and seeds, or a sequence of these:
            values are then the mean over baselines, each of which takes `steps` gradients.
        score: F. The logit is what the paper explains.
        variant: "captum" reproduces captum's numbers for its rules (Gauss-Legendre and the four Riemann sums), see
            `as_captum`; its trapezoids sum to 1 - 1 / steps of the integral.
    """

    steps: int = 32
    rule: Rule = "gauss_legendre"
    baseline: Baseline = "black"
    score: Score = "logit"
    variant: Literal["sound", "captum"] = "sound"

    def __post_init__(self) -> None:
        validation.integer("steps", self.steps, 1, _MOST)
        validation.choice("score", self.score, SCORES)
        validation.choice("rule", self.rule, RULES)
        validation.choice("variant", self.variant, ("sound", "captum"))
        if self.variant == "captum" and self.rule == "inclusive_mean":
            raise validation.fail("rule", "one of captum's with variant='captum'", repr(self.rule))
        quadrature(self.rule, self.steps)
        object.__setattr__(self, "baseline", baselines.checked(self.baseline))

    @property
    def stochastic(self) -> bool:
        """Whether a baseline is drawn."""
        return draws(self.baseline)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return IG; `steps` forward and backward passes a baseline, and one forward pass each for both ends."""
        bases = baselines.make(self.baseline, images, seeds, classifier.bounds)
        return average_over_baselines(classifier, images, target, logits, self.score, bases, self._path)

    def _path(self, line: Line) -> Path:
        made = quadrature if self.variant == "sound" else as_captum
        points, weights = map(line.everywhere, made(self.rule, self.steps))
        values, curve = torch.zeros_like(line.images), torch.empty_like(points)
        for block in line.gradients(points):
            values[block.rows] += block.weighted(weights[block.rows, block.columns])
            curve[block.rows, block.columns] = block.scores
        return Path.of(line, values, curve)
