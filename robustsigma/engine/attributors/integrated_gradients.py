"""Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from robustsigma.engine import validation
from robustsigma.engine.attributors.baselines import Baseline
from robustsigma.engine.attributors.path_methods import Line, PathResult, StraightLineAttributor
from robustsigma.engine.scores import Score

Rule = Literal["gauss_legendre", "midpoint", "left", "right", "trapezoid", "inclusive_mean"]
RULES: tuple[Rule, ...] = get_args(Rule)
_MAX_STEPS = 5000  # the points of Gauss-Legendre come from a matrix of steps x steps


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


@dataclass(frozen=True)
class IntegratedGradients(StraightLineAttributor):
    """IG_i = (x_i - x'_i) * integral over a in [0, 1] of dF(x' + a (x - x'))/dx_i (Sundararajan et al., 2017, eq. 1).

    It costs `steps` forward and backward passes a baseline, and one forward pass for each end.
    `published.CaptumIntegratedGradients` reproduces captum's numbers.

    Args:
        steps: points of the quadrature, a gradient each; at most 5,000.
        rule: quadrature rule. Gauss-Legendre has the smallest completeness gap on smooth networks.
            "inclusive_mean" gives both end points full weight, which is off by O(1 / steps): the rule of PAIR's
            saliency library and of the IDG authors, for comparisons with their maps.
        baseline: x': "black", "white", "mean" (each channel's mean over the image), "gaussian" (0.5 + 0.25 times
            seeded normal noise, clipped), "blur" (the image under a Gaussian of a tenth of its shorter side).
            Also a tensor that expands to the images, or a function of images, or of images and seeds. Of a sequence of
            these, values are the mean over baselines, each of which takes `steps` gradients.
        score: F. The paper explains the logit.

    Example:
        >>> result = IntegratedGradients(steps=20, baseline="white")(classifier, images, target)
        >>> result.heatmap(), result.gap()
    """

    steps: int = 32
    rule: Rule = "gauss_legendre"
    baseline: Baseline = "black"
    score: Score = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.integer("steps", self.steps, 1, _MAX_STEPS)
        quadrature(self.rule, self.steps)

    def integrate(self, line: Line) -> PathResult:
        """Return IG along one line."""
        points, weights = self._quadrature()
        return PathResult(line, *line.weighted_sum(line.expanded(points), line.expanded(weights)))

    def _quadrature(self) -> tuple[list[float], list[float]]:
        return quadrature(self.rule, self.steps)
