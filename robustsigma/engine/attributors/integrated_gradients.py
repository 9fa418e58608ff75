"""Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.classifier import SCORES, Classifier, Score, pick

Rule = Literal["gauss_legendre", "midpoint", "left", "right", "trapezoid"]
Baseline = Literal["black", "white", "mean", "gaussian"]
RULES: tuple[Rule, ...] = ("gauss_legendre", "midpoint", "left", "right", "trapezoid")
BASELINES: tuple[Baseline, ...] = ("black", "white", "mean", "gaussian")


@lru_cache(maxsize=64)
def quadrature(rule: Rule, steps: int) -> tuple[list[float], list[float]]:
    """Return `steps` points in [0, 1] and weights that sum to 1."""
    validation.choice("rule", rule, RULES)
    if rule == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    if rule == "trapezoid":
        if steps < 2:
            raise validation.fail("steps", "at least 2 for the trapezoid rule", steps)
        ends = [0.5 if k in (0, steps - 1) else 1.0 for k in range(steps)]
        return [k / (steps - 1) for k in range(steps)], [w / (steps - 1) for w in ends]
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return [(k + shift) / steps for k in range(steps)], [1 / steps] * steps


@dataclass(frozen=True)
class IntegratedGradients(Attributor):
    """IG_i = (x_i - x'_i) * integral over a in [0, 1] of dF(x' + a (x - x'))/dx_i (Sundararajan et al., 2017, eq. 1).

    Args:
        steps: points of the quadrature, a gradient each.
        rule: of the quadrature. Gauss-Legendre has the smallest completeness gap on smooth networks.
        baseline: x': "black", "white", "mean" (each channel's mean over the image) or "gaussian" (0.5 + 0.25 times
            seeded normal noise, clipped).
        score: F. The logit is what the paper explains.
    """

    steps: int = 32
    rule: Rule = "gauss_legendre"
    baseline: Baseline = "black"
    score: Score = "logit"

    def __post_init__(self) -> None:
        validation.integer("steps", self.steps, 1)
        validation.choice("baseline", self.baseline, BASELINES)
        validation.choice("score", self.score, SCORES)
        quadrature(self.rule, self.steps)

    def _baseline(self, images: Tensor, seeds: Tensor, bounds: tuple[float, float]) -> Tensor:
        low, high = bounds
        if self.baseline == "black":
            return torch.full_like(images, low)
        if self.baseline == "white":
            return torch.full_like(images, high)
        if self.baseline == "mean":
            return images.mean((2, 3), keepdim=True).expand_as(images).contiguous()
        drawn = noise.gaussian(noise.fold(seeds, "baseline"), tuple(images.shape[1:]), images.dtype)
        return ((low + high) / 2 + (high - low) / 4 * drawn).clamp(low, high)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return IG; images x steps are flattened into chunks, with a running sum for each image."""
        count, device = len(images), images.device
        base = self._baseline(images, seeds, classifier.bounds)
        way = images - base
        points, weights = (
            torch.tensor(v, dtype=images.dtype, device=device) for v in quadrature(self.rule, self.steps)
        )
        total = torch.zeros_like(images)
        curve = torch.empty(count * self.steps, dtype=images.dtype, device=device)
        chunk = classifier.chunk_for(images)
        for start in range(0, count * self.steps, chunk):
            flat = torch.arange(start, min(start + chunk, count * self.steps), device=device)
            image, step = flat // self.steps, flat % self.steps
            at = base[image] + points[step, None, None, None] * way[image]
            along, gradient = classifier.score_and_gradient(at, target[image], self.score)
            total.index_add_(0, image, gradient.to(images.dtype) * weights[step, None, None, None])
            curve[flat] = pick(along, target[image], self.score).to(images.dtype)
        first = pick(logits, target, self.score).to(images.dtype)
        last = classifier.score(base, target, self.score).to(images.dtype)
        return Attribution(
            values=total * way,
            target=target,
            endpoint=base,
            drop=first - last,
            # From the image to the baseline, as every method's curve starts at the image.
            confidence=torch.cat([first[:, None], curve.reshape(count, -1).flip(1), last[:, None]], 1)[:, None],
            steps=torch.full((count, 1), self.steps, device=device),
            converged=torch.ones(count, 1, dtype=torch.bool, device=device),
            forwards=torch.full((count,), self.steps + 2, device=device),
            backwards=torch.full((count,), self.steps, device=device),
        )
