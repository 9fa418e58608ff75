"""The walk of SIGMA: many SPSA descents at once, of which finished ones leave the batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.attributors.baselines import Given
from robustsigma.engine.attributors.image_range import AUTHORS_UNIT, AuthorsRange, ImageRange, image_range
from robustsigma.engine.classifier import Classifier, target_score
from robustsigma.engine.short_repr import ShortRepr

if TYPE_CHECKING:
    from robustsigma.engine.attributors.sigma import Sigma

# The published code adds these to denominators, in pixel units of [0, 255].
_AUTHORS_SUM_FLOOR = 1e-10
_AUTHORS_CURVATURE_FLOOR = 1e-8

_PER_IMAGE = (-1, 1, 1, 1)


@dataclass(repr=False)
class Walk(ShortRepr):
    """Where the paths of some rows ended. R rows, S steps of the longest.

    Attributes:
        ends: (R, C, H, W) the last point of each path, in range.
        latents: (R, C, H, W) the same before the map into the range, where the walk adds up its steps.
        curve: (R, S + 1) confidence, NaN after the end.
        steps: (R,) int64.
        guarded: (R,) int64, steps whose gradient was not scaled (`Sigma.guard`).
        values: (R, C, H, W) the attribution, or None for a walk without gradients.
    """

    ends: Tensor
    latents: Tensor
    curve: Tensor
    steps: Tensor
    guarded: Tensor
    values: Tensor | None


@dataclass
class _State:
    """What moving rows carry from step to step; row r of these belongs to row rows[r] of the walk.

    `point` is `latent` mapped into the range. `idle` counts steps in a row whose probes told no difference; `before`
    and `move` are the previous latent point and slope estimate of the adaptive step size, else None.
    """

    rows: Tensor
    latent: Tensor
    point: Tensor
    now: Tensor
    idle: Tensor
    before: Tensor | None
    move: Tensor | None

    def keep(self, kept: Tensor) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[kept])


class SpsaWalk:
    """Walks of a `Sigma` from R rows, each an image and the number of one of its paths."""

    def __init__(
        self, rule: Sigma, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor, path: Tensor
    ) -> None:
        self.rule, self.classifier, self.images, self.target, self.path = rule, classifier, images, target, path
        self.keys = noise.fold(seeds, "sigma", path)
        self.authors = rule.variant == "authors"
        self.unit = AUTHORS_UNIT if self.authors else 1.0
        # The code's float32 latents round away much of each step; kept in float64, a path is the one they meant.
        self.dtype = torch.float64 if self.authors else images.dtype
        self.range: ImageRange = (
            AuthorsRange() if self.authors else image_range(rule.range_mode, images, classifier.bounds)
        )
        given = rule.patterns.tensor if isinstance(rule.patterns, Given) else None
        self.patterns = None if given is None else given.to(images.device, self.dtype)
        self.limit = rule.max_steps if self.patterns is None else min(rule.max_steps, len(self.patterns))

    def run(self, confidence: Tensor, *, gradients: bool) -> Walk:
        """Walk until every row has arrived, is stuck or has used up its steps; `confidence` (R,) is at the start."""
        count, device = len(self.images), self.images.device
        ends = self.images.to(self.dtype, copy=True)
        latents = (self.images * self.unit).to(self.dtype)
        steps = torch.zeros(count, dtype=torch.int64, device=device)
        guarded = torch.zeros_like(steps)
        confidence = confidence.to(self.dtype)
        curve = [confidence]
        values = torch.zeros_like(ends) if gradients else None
        owed = torch.zeros_like(confidence)  # the drop that no gradient could take yet
        adaptive = self.rule.adaptive is not None
        state = _State(
            rows=torch.arange(count, device=device),
            latent=latents.clone(),
            point=ends.clone(),
            now=confidence.clone(),
            idle=torch.zeros_like(steps),
            before=latents.clone() if adaptive else None,
            move=torch.zeros_like(latents) if adaptive else None,
        )
        for step in range(self.limit):
            # Asked at every step: on a GPU it waits for the device, which costs less than passes of rows that are done.
            kept = self._moving(state).nonzero()[:, 0]
            if len(kept) < len(state.rows):
                ends[state.rows], latents[state.rows] = state.point, state.latent
                state.keep(kept)
            if len(kept) == 0:
                break
            rows = state.rows
            self._move(state, step)
            state.point = self.range.point(state.latent, rows)
            new, gradient = self._evaluate(state.point, self.target[rows], gradients)
            if values is not None and gradient is not None:
                drop = owed[rows] + (state.now - new)
                part, sound = self._weighted(gradient, drop)
                owed[rows] = torch.where(sound, 0, drop)
                guarded[rows] += ~sound
                values.index_add_(0, rows, part)
            state.now = new
            steps[rows] += 1
            column = torch.full_like(confidence, torch.nan)
            column[rows] = new
            curve.append(column)
        ends[state.rows], latents[state.rows] = state.point, state.latent
        if values is not None and not self.authors and self.rule.weighting == "signed":
            self._settle(values, owed)
        longest = int(steps.max()) + 1
        wanted = self.images.dtype
        return Walk(
            ends=ends.to(wanted),
            latents=(latents / self.unit).to(wanted),
            curve=torch.stack(curve, 1)[:, :longest].to(wanted),
            steps=steps,
            guarded=guarded,
            values=None if values is None else values.to(wanted),
        )

    def _moving(self, state: _State) -> Tensor:
        moving = state.now > self.rule.epsilon
        # The published code walks on, whatever the probes say.
        return moving if self.authors else moving & (state.idle < self.rule.patience)

    def _pattern(self, rows: Tensor, step: int) -> Tensor:
        """Return D_k in latent units, (R, C, H, W)."""
        if self.patterns is not None:
            return self.patterns[step][self.path[rows]] * self.unit
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        keys = noise.fold(self.keys[rows], step)
        drawn = noise.pattern(self.rule.noise, keys, shape, self.dtype, scale=self.rule.noise_scale)
        low, high = self.classifier.bounds
        # The stretch takes out a constant, so the code's {0, R} and +-R/2 walk alike, save for its adaptive step.
        return (high - low) / 2 * self.unit * (drawn + 1 if self.authors else drawn)

    def _move(self, state: _State, step: int) -> None:
        """Take one SPSA step (eq. 2 and 3)."""
        rule, at = self.rule, self.target[state.rows]
        pattern = self._pattern(state.rows, step)
        probe = rule.beta * pattern
        probes = [self.range.probe(state.latent + sign * probe, state.rows) for sign in (1, -1)]
        logits = self.classifier.logits(torch.cat(probes))
        plus, minus = self._objective(logits, at.repeat(2)).to(self.dtype).chunk(2)
        slope = (plus - minus) / (2 * rule.beta)
        state.idle = torch.where(slope == 0, state.idle + 1, 0)
        move = slope.reshape(_PER_IMAGE) * pattern
        if rule.adaptive is None:
            state.latent = state.latent - rule.alpha * move
            return
        size = self._adapted(state, move, rule.adaptive)
        state.before, state.move = state.latent, move
        state.latent = state.latent - size.reshape(_PER_IMAGE) * move

    def _adapted(self, state: _State, move: Tensor, limits: tuple[float, float]) -> Tensor:
        """Return Barzilai and Borwein's first step size <dx, dx> / <dx, dg>, clamped, (R,).

        Where the curvature <dx, dg> is not positive, as before the first step, the lower limit.
        """
        assert state.before is not None
        assert state.move is not None
        way = (state.latent - state.before).flatten(1)
        length, curvature = (way * way).sum(1), (way * (move - state.move).flatten(1)).sum(1)
        if self.authors:
            return (length / (curvature + _AUTHORS_CURVATURE_FLOOR)).clamp(*limits)
        bent = curvature > 0
        return torch.where(bent, length / torch.where(bent, curvature, 1), 0).clamp(*limits)

    def _objective(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.confidence(logits, target) if self.authors else target_score(logits, target, self.rule.objective)

    def confidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return p of the target, (R,)."""
        if self.authors:  # with the rounding of the code's softmax, which decides where p is near 1
            return logits.softmax(1).gather(1, target[:, None])[:, 0]
        return target_score(logits, target, "prob")

    def _evaluate(self, point: Tensor, target: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Return p (R,) and, from the same forward pass, the gradient (R, C, H, W) or None."""
        gradient = None
        if gradients:
            logits, gradient = self.classifier.score_and_gradient(
                point, target, "logit" if self.authors else "log_prob"
            )
            gradient = gradient.to(self.dtype)
        else:
            logits = self.classifier.logits(point)
        return self.confidence(logits, target).to(self.dtype), gradient

    def _weighted(self, gradient: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Return a step's share of the attribution (eq. 4), (R, C, H, W), and whether it could take the drop, (R,)."""
        if self.authors:
            gradient = gradient / self.unit
            factor = drop / (gradient.flatten(1).sum(1) + _AUTHORS_SUM_FLOOR)
            return gradient * factor.reshape(_PER_IMAGE), torch.ones_like(drop, dtype=torch.bool)
        # Divided by its size first: a gradient may be so small that drop / sum overflows.
        size = gradient.flatten(1).abs().sum(1)
        alive = torch.isfinite(size) & (size > 0)
        unit = torch.where(alive.reshape(_PER_IMAGE), gradient, 0) / torch.where(alive, size, 1).reshape(_PER_IMAGE)
        if self.rule.weighting == "abs":
            return unit * drop.reshape(_PER_IMAGE), alive
        total = unit.flatten(1).sum(1)
        sound = total.abs() > self.rule.guard
        factor = torch.where(sound, drop / torch.where(sound, total, 1), 0)
        return unit * factor.reshape(_PER_IMAGE), sound

    def _settle(self, values: Tensor, owed: Tensor) -> None:
        """Spread a drop that no later step could take over the features, in proportion to what they already have.

        Where no gradient was sound there is nothing to scale, and the completeness gap says so.
        """
        total, size = values.flatten(1).sum(1), values.flatten(1).abs().sum(1)
        sound = total.abs() > self.rule.guard * size
        values *= torch.where(sound, 1 + owed / torch.where(sound, total, 1), 1).reshape(_PER_IMAGE)
