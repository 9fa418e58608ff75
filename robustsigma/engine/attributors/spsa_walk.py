"""The walk of SIGMA's algorithm 1: many SPSA descents in one batch, which finished rows leave."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score
from robustsigma.engine.short_repr import ShortRepr

if TYPE_CHECKING:
    from robustsigma.engine.attributors.sigma import Sigma

_PER_IMAGE = (-1, 1, 1, 1)

RangeMode = Literal["original", "full", "clip", "none"]


class ImageRange:
    """Maps latent points (N, C, H, W) of a walk to images; `rows` (N,) are the rows of the walk that they belong to.

    Args:
        mode: "original" maps each point affinely from its own [min, max] to that of its row's image, "full" to all of
            the bounds; "clip" clips, and "none" clips only the points of the path.
        images: (R, C, H, W), at which the rows start.
        bounds: valid pixel range.
    """

    def __init__(self, mode: RangeMode, images: Tensor, bounds: tuple[float, float]) -> None:
        self.mode, self.bounds = mode, bounds
        self.low, self.high = images.flatten(1).aminmax(dim=1)
        if mode == "full":
            self.low, self.high = (torch.full_like(self.low, bound) for bound in bounds)

    def probe(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the images at which the slope is measured."""
        return points if self.mode == "none" else self.point(points, rows)

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return the images of the path; a constant point of an affine mode becomes its row's low end."""
        if self.mode in ("clip", "none"):
            return points.clamp(*self.bounds)
        low, high = points.flatten(1).aminmax(dim=1)
        span = high - low
        slope = (self.high[rows] - self.low[rows]) / torch.where(span > 0, span, 1)
        mapped = (points - low.reshape(_PER_IMAGE)) * slope.reshape(_PER_IMAGE) + self.low[rows].reshape(_PER_IMAGE)
        return mapped.clamp(*self.bounds)


@dataclass(repr=False)
class Walk(ShortRepr):
    """The paths of some rows. R rows, S steps of the longest.

    Attributes:
        ends: (R, C, H, W) the last point of each path, in range.
        latents: (R, C, H, W) the same before the map into the range, where the walk adds up its steps.
        curve: (R, S + 1) confidence, NaN after the end.
        steps: (R,) int64.
        unscaled: (R,) int64, steps whose gradient was not scaled (`Sigma.min_sum_ratio`).
        values: (R, C, H, W) the attribution, or None for a walk without gradients.
    """

    ends: Tensor
    latents: Tensor
    curve: Tensor
    steps: Tensor
    unscaled: Tensor
    values: Tensor | None


@dataclass
class State:
    """What moving rows carry from step to step; row r of these belongs to row rows[r] of the walk.

    `point` is `latent` mapped into the range, and `now` its confidence. `idle` counts steps in a row whose two probes
    had equal scores. `last` (N, 2, C, H, W) holds the latent point and the slope estimate of the step before, for the
    adaptive step size; else it is None.
    """

    rows: Tensor
    latent: Tensor
    point: Tensor
    now: Tensor
    idle: Tensor
    last: Tensor | None

    def keep(self, kept: Tensor) -> None:
        """Drop the rows that are done."""
        for field in fields(self):
            value = getattr(self, field.name)
            setattr(self, field.name, None if value is None else value[kept])


class SpsaWalk:
    """Walks of a `Sigma` from R rows, each an image and the number of one of its paths."""

    gradient_score: ClassVar[Score] = "log_prob"  # its gradient is that of p up to a factor, without underflow
    unit: ClassVar[float] = 1.0  # of latent points, per unit of pixels
    dtype: ClassVar[torch.dtype | None] = None  # of latent points; None takes that of the images

    def __init__(
        self, sigma: Sigma, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor, path: Tensor
    ) -> None:
        self.sigma, self.classifier, self.images, self.target, self.path = sigma, classifier, images, target, path
        self.keys = noise.fold(seeds, "sigma", path)
        self.precision = images.dtype if self.dtype is None else self.dtype
        self.range = self._range()
        given = sigma.patterns.tensor if isinstance(sigma.patterns, FrozenTensor) else None
        self.patterns = None if given is None else given.to(images.device, self.precision)
        self.max_steps = sigma.max_steps if given is None else min(sigma.max_steps, len(given))

    def run(self, confidence: Tensor, *, gradients: bool, visited: list[Tensor] | None = None) -> Walk:
        """Walk until every row has converged, is stuck or has used all steps; `confidence` (R,) is that of the images.

        Without `gradients` the walk is the same, and nothing is attributed. After each step, the points of the rows
        that moved are added to `visited`.
        """
        ends = self.images.to(self.precision, copy=True)
        latents = (self.images * self.unit).to(self.precision)
        confidence = confidence.to(self.precision)
        steps = torch.zeros(len(ends), dtype=torch.int64, device=ends.device)
        unscaled = torch.zeros_like(steps)
        residual = torch.zeros_like(confidence)  # the drop that no gradient could take yet
        values = torch.zeros_like(ends) if gradients else None
        curve = [confidence]
        state = State(
            rows=torch.arange(len(ends), device=ends.device),
            latent=latents.clone(),
            point=ends.clone(),
            now=confidence,
            idle=torch.zeros_like(steps),
            last=None if self.sigma.adaptive is None else torch.stack([latents, torch.zeros_like(latents)], 1),
        )
        for step in range(self.max_steps):
            # This waits for a GPU at every step, which costs less than passes for rows that are done.
            kept = self._moving(state).nonzero()[:, 0]
            if len(kept) < len(state.rows):
                ends[state.rows], latents[state.rows] = state.point, state.latent
                state.keep(kept)
            if len(kept) == 0:
                break
            rows = state.rows
            self._descend(state, step)
            state.point = self.range.point(state.latent, rows)
            if visited is not None:
                visited.append(state.point)
            new, gradient = self._evaluate(state.point, self.target[rows], gradients)
            if values is not None and gradient is not None:
                drop = residual[rows] + (state.now - new)
                part, scaled = self._scaled(gradient, drop)
                residual[rows] = torch.where(scaled, 0, drop)
                unscaled[rows] += ~scaled
                values.index_add_(0, rows, part)
            state.now = new
            steps[rows] += 1
            curve.append(torch.full_like(confidence, torch.nan).index_copy(0, rows, new))
        ends[state.rows], latents[state.rows] = state.point, state.latent
        if values is not None:
            values = self._redistribute(values, residual).to(self.images.dtype)
        return Walk(
            ends=ends.to(self.images.dtype),
            latents=(latents / self.unit).to(self.images.dtype),
            curve=torch.stack(curve, 1).to(self.images.dtype),
            steps=steps,
            unscaled=unscaled,
            values=values,
        )

    def _range(self) -> ImageRange:
        return ImageRange(self.sigma.range_mode, self.images, self.classifier.bounds)

    def _moving(self, state: State) -> Tensor:
        return (state.now > self.sigma.epsilon) & (state.idle < self.sigma.patience)

    def _descend(self, state: State, step: int) -> None:
        """Take one SPSA step: h = (f(s + b D) - f(s - b D)) / 2b, s <- s - a h D (eq. 2 and 3)."""
        sigma, target = self.sigma, self.target[state.rows]
        pattern = self._pattern(state.rows, step)
        probe = sigma.beta * pattern
        probes = [self.range.probe(state.latent + sign * probe, state.rows) for sign in (1, -1)]
        logits = self.classifier.logits(torch.cat(probes))
        plus, minus = target_score(logits, target.repeat(2), sigma.objective).to(self.precision).chunk(2)
        h = (plus - minus) / (2 * sigma.beta)
        state.idle = torch.where(h == 0, state.idle + 1, 0)
        slope = (h.sign() if sigma.normalized else h).reshape(_PER_IMAGE) * pattern
        if sigma.adaptive is None or state.last is None:
            state.latent = state.latent - sigma.alpha * slope
            return
        now = torch.stack([state.latent, slope], 1)
        delta, change = (now - state.last).flatten(2).unbind(1)
        size = self._step_size((delta * delta).sum(1), (delta * change).sum(1)).clamp(*sigma.adaptive)
        state.last = now
        state.latent = state.latent - size.reshape(_PER_IMAGE) * slope

    def _pattern(self, rows: Tensor, step: int) -> Tensor:
        """Return D_k in latent units, (R, C, H, W)."""
        if self.patterns is not None:
            return self.patterns[step][self.path[rows]] * self.unit
        low, high = self.classifier.bounds
        return (high - low) / 2 * self.unit * self._drawn(noise.fold(self.keys[rows], step))

    def _drawn(self, keys: Tensor) -> Tensor:
        """Return patterns of amplitude 1."""
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        return noise.pattern(self.sigma.noise, keys, shape, self.precision, scale=self.sigma.noise_scale)

    def _step_size(self, length: Tensor, curvature: Tensor) -> Tensor:
        """Return Barzilai and Borwein's <dx, dx> / <dx, dg>, (R,); 0 where the curvature is not positive."""
        bent = curvature > 0
        return torch.where(bent, length / torch.where(bent, curvature, 1), 0)

    def _evaluate(self, point: Tensor, target: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Return p (R,) and, from the same forward pass, the gradient (R, C, H, W) or None."""
        if gradients:
            logits, gradient = self.classifier.score_and_gradient(point, target, self.gradient_score)
            return target_score(logits, target, "prob").to(self.precision), gradient.to(self.precision)
        return target_score(self.classifier.logits(point), target, "prob").to(self.precision), None

    def _scaled(self, gradient: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Return g drop / sum(g) (eq. 4), (R, C, H, W), and whether the gradient could be scaled, (R,)."""
        # Divided by its size first: a gradient may be so small that drop / sum overflows.
        size = gradient.flatten(1).abs().sum(1)
        alive = torch.isfinite(size) & (size > 0)
        unit = torch.where(alive.reshape(_PER_IMAGE), gradient, 0) / torch.where(alive, size, 1).reshape(_PER_IMAGE)
        if self.sigma.weighting == "abs":
            return unit * drop.reshape(_PER_IMAGE), alive
        total = unit.flatten(1).sum(1)
        scalable = total.abs() > self.sigma.min_sum_ratio
        factor = torch.where(scalable, drop / torch.where(scalable, total, 1), 0)
        return unit * factor.reshape(_PER_IMAGE), scalable

    def _redistribute(self, values: Tensor, residual: Tensor) -> Tensor:
        """Distribute a drop that no later step could take over the features, in proportion to what they already have.

        Where no gradient could be scaled, values stay zero, and the completeness gap shows it.
        """
        if self.sigma.weighting == "abs":
            return values
        total, size = values.flatten(1).sum(1), values.flatten(1).abs().sum(1)
        scalable = total.abs() > self.sigma.min_sum_ratio * size
        return values * torch.where(scalable, 1 + residual / torch.where(scalable, total, 1), 1).reshape(_PER_IMAGE)
