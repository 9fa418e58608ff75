"""SIGMA: the self-guided integrated gradient method for attribution, and its zero-confidence samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.classifier import SCORES, Classifier, Score, pick
from robustsigma.engine.noise import NOISES, Noise

RangeMode = Literal["original", "full", "clip"]
RANGE_MODES: tuple[RangeMode, ...] = ("original", "full", "clip")

# Rows (images x paths) walked at once, in chunks of the classifier: enough to fill passes while rows finish.
_CHUNKS_PER_GROUP = 2
# On a GPU asking which rows are done stalls the device, so it is asked every few steps; in between, done rows stay put.
_GPU_CHECK_INTERVAL = 4


@dataclass
class Walk:
    """Where the paths of some rows ended. R rows, S steps of the longest.

    Attributes:
        ends: (R, C, H, W) the last point of each path, in range.
        curve: (R, S + 1) confidence, NaN after the end.
        steps: (R,) int64.
        values: (R, C, H, W) the attribution, or None for a walk without gradients.
    """

    ends: Tensor
    curve: Tensor
    steps: Tensor
    values: Tensor | None


class _Range:
    """Maps latent points into the valid range, by what each row's own image spans (METHODS: the authors' M)."""

    def __init__(self, mode: RangeMode, images: Tensor, bounds: tuple[float, float]) -> None:
        self.mode, self.bounds = mode, bounds
        if mode == "original":
            flat = images.flatten(1)
            self.low, self.high = flat.amin(1), flat.amax(1)
        else:
            self.low = images.new_full((len(images),), bounds[0])
            self.high = images.new_full((len(images),), bounds[1])

    def __call__(self, points: Tensor, rows: Tensor) -> Tensor:
        if self.mode == "clip":
            return points.clamp(*self.bounds)
        flat = points.flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        span = high - low
        slope = (self.high[rows] - self.low[rows]) / torch.where(span > 0, span, 1)
        shape = (-1, 1, 1, 1)
        mapped = (points - low.reshape(shape)) * slope.reshape(shape) + self.low[rows].reshape(shape)
        return mapped.clamp(*self.bounds)


@dataclass(frozen=True)
class Sigma(Attributor):
    """SIGMA (Henry, Ruget, Scholes and Leach, 2025, algorithm 1 and eq. 4).

    From the image an SPSA walk descends the confidence p of the target: D_k random, h = (f(s_k + b D_k) -
    f(s_k - b D_k)) / 2b, s_{k+1} = s_k - a h D_k, until p <= epsilon. Each step's gradient at the new point is scaled
    so that it sums to the drop in confidence, and the steps are summed: `values` sum to the drop of p.

    Decided where paper and code differ: patterns have amplitude (high - low) / 2, which reproduces the published
    a and b; evaluated points are mapped to the image's own [min, max]; the gradient is of log p (the same as of p
    after scaling, without its underflow).

    Args:
        alpha: step size a.
        beta: size b of the two probes, in units of half the pixel range.
        epsilon: confidence at which a path has arrived.
        paths: walks averaged; more make the map smoother and give its standard error.
        max_steps: a path that has not arrived by then is returned with `converged` False.
        objective: f, what the walk descends. "prob" is the paper's; on confident networks it stands still where p
            rounds to 1, and "log_prob" does not.
        noise: pattern D, zero-mean: "bernoulli" (the paper's), "gaussian", "uniform" or "perlin".
        noise_scale: pixels between the lattice points of Perlin noise.
        range_mode: "original" maps evaluated points affinely to the image's own [min, max], "full" to the whole
            pixel range (which moves the image itself), "clip" clips.
        guard: a gradient whose |sum| is at most this share of its sum of magnitudes is not scaled: its drop is
            carried to the next step, so that completeness holds without one map outweighing all others.
    """

    alpha: float = 0.1
    beta: float = 0.5
    epsilon: float = 0.01
    paths: int = 7
    max_steps: int = 1000
    objective: Score = "prob"
    noise: Noise = "bernoulli"
    noise_scale: int = 8
    range_mode: RangeMode = "original"
    guard: float = 1e-4

    def __post_init__(self) -> None:
        validation.number("alpha", self.alpha, 0, open_low=True)
        validation.number("beta", self.beta, 0, open_low=True)
        validation.number("epsilon", self.epsilon, 0, 1, open_low=True)
        validation.integer("paths", self.paths, 1)
        validation.integer("max_steps", self.max_steps, 1)
        validation.choice("objective", self.objective, SCORES)
        validation.choice("noise", self.noise, NOISES)
        validation.integer("noise_scale", self.noise_scale, 1)
        validation.choice("range_mode", self.range_mode, RANGE_MODES)
        validation.number("guard", self.guard, 0, 1)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the attribution, mean over paths; each step costs 3 forward passes and 1 backward pass a path."""
        confidence = pick(logits, target, "prob").to(images.dtype)
        walk = self._walk(classifier, images, target, confidence, seeds, self.paths, gradients=True)
        assert walk.values is not None
        shape = (len(images), self.paths)
        values = walk.values.unflatten(0, shape)
        ends = walk.ends.unflatten(0, shape)
        curve, steps = walk.curve.unflatten(0, shape), walk.steps.unflatten(0, shape)
        last = curve.gather(2, steps[..., None])[..., 0]
        maps = values.abs().sum(2)
        return Attribution(
            values=values.mean(1),
            target=target,
            endpoint=ends[:, 0],
            drop=(confidence[:, None] - last).mean(1),
            confidence=curve,
            steps=steps,
            converged=last <= self.epsilon,
            forwards=3 * steps.sum(1) + 1,
            backwards=steps.sum(1),
            stderr=maps.std(1) / self.paths**0.5 if self.paths > 1 else None,
            endpoints=ends,
        )

    def sample(self, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor) -> Walk:
        """Return path 0 alone, without gradients: 3 forward passes a step. Call inside `classifier.frozen()`.

        The ends are bit for bit those that `attribute` finds for path 0 at the same chunking.
        """
        confidence = classifier.score(images, target, "prob").to(images.dtype)
        return self._walk(classifier, images, target, confidence, seeds, 1, gradients=False)

    def _walk(
        self,
        classifier: Classifier,
        images: Tensor,
        target: Tensor,
        confidence: Tensor,
        seeds: Tensor,
        paths: int,
        *,
        gradients: bool,
    ) -> Walk:
        """Walk all images x paths in groups that bound the memory; groups do not change the results."""
        size = max(1, _CHUNKS_PER_GROUP * classifier.chunk_for(images) // paths)
        groups = zip(*(t.split(size) for t in (images, target, confidence, seeds)), strict=True)
        walks = [
            self._walk_group(classifier, x, at, start, keys, paths, gradients=gradients)
            for x, at, start, keys in groups
        ]
        longest = max(w.curve.shape[1] for w in walks)
        curves = [torch.nn.functional.pad(w.curve, (0, longest - w.curve.shape[1]), value=torch.nan) for w in walks]
        values = [w.values for w in walks if w.values is not None]
        return Walk(
            ends=torch.cat([w.ends for w in walks]),
            curve=torch.cat(curves),
            steps=torch.cat([w.steps for w in walks]),
            values=torch.cat(values) if values else None,
        )

    def _walk_group(
        self,
        classifier: Classifier,
        images: Tensor,
        target: Tensor,
        confidence: Tensor,
        seeds: Tensor,
        paths: int,
        *,
        gradients: bool,
    ) -> Walk:
        count = len(images) * paths
        shape = (-1, 1, 1, 1)
        in_range = _Range(self.range_mode, images.repeat_interleave(paths, 0), classifier.bounds)
        low, high = classifier.bounds
        amplitude = (high - low) / 2
        target = target.repeat_interleave(paths)
        path = torch.arange(paths, device=images.device).repeat(len(images))
        keys = noise.fold(seeds.repeat_interleave(paths), "sigma", path)

        ends = images.repeat_interleave(paths, 0)
        steps = torch.zeros(count, dtype=torch.int64, device=images.device)
        curve = [confidence.repeat_interleave(paths)]
        values = torch.zeros_like(ends) if gradients else None
        # Compacted state: row r of these belongs to row rows[r] of the full arrays.
        rows = torch.arange(count, device=images.device)
        latent, now = ends.clone(), curve[0].clone()
        owed = torch.zeros_like(now)  # of all rows: the drop that no gradient could take yet
        interval = 1 if images.device.type == "cpu" else _GPU_CHECK_INTERVAL
        for step in range(self.max_steps):
            if step % interval == 0:
                kept = (now > self.epsilon).nonzero()[:, 0]
                if len(kept) == 0:
                    break
                if len(kept) < len(rows):
                    rows, latent, now = rows[kept], latent[kept], now[kept]
            moving = now > self.epsilon
            at = target[rows]
            pattern = amplitude * noise.pattern(
                self.noise,
                noise.fold(keys[rows], step),
                (images.shape[1], images.shape[2], images.shape[3]),
                latent.dtype,
                scale=self.noise_scale,
            )
            slope = self._slope(classifier, latent, pattern, at, in_range, rows)
            slope = torch.where(moving, slope, 0)
            latent = latent - (self.alpha * slope).reshape(shape) * pattern
            point = torch.where(moving.reshape(shape), in_range(latent, rows), ends[rows])
            if values is None:
                new = classifier.score(point, at, "prob").to(now.dtype)
            else:
                logits, gradient = classifier.score_and_gradient(point, at, "log_prob")
                new = pick(logits, at, "prob").to(now.dtype)
                drop = owed[rows] + torch.where(moving, now - new, 0)
                scale, owed[rows] = self._weight(gradient.to(latent.dtype), drop)
                values.index_add_(0, rows, gradient.to(latent.dtype) * scale.reshape(shape))
            now = torch.where(moving, new, now)
            ends[rows] = point
            steps[rows] += moving
            column = torch.full_like(curve[0], torch.nan)
            column[rows] = torch.where(moving, now, torch.nan)
            curve.append(column)
        if values is not None:
            self._settle(values, owed)
        longest = int(steps.max()) + 1
        return Walk(ends, torch.stack(curve, 1)[:, :longest], steps, values)

    def _slope(
        self, classifier: Classifier, latent: Tensor, pattern: Tensor, at: Tensor, in_range: _Range, rows: Tensor
    ) -> Tensor:
        """Return h of eq. 2, (R,), from one call with both probes."""
        probe = self.beta * pattern
        probes = torch.cat([in_range(latent + probe, rows), in_range(latent - probe, rows)])
        plus, minus = classifier.score(probes, at.repeat(2), self.objective).to(latent.dtype).chunk(2)
        return (plus - minus) / (2 * self.beta)

    def _weight(self, gradient: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of eq. 4, (R,), and the drop still to be spread where the gradient's sum vanishes."""
        flat = gradient.flatten(1)
        total, size = flat.sum(1), flat.abs().sum(1)
        sound = torch.isfinite(size) & (total.abs() > self.guard * size)
        return torch.where(sound, drop / torch.where(sound, total, 1), 0), torch.where(sound, 0, drop)

    def _settle(self, values: Tensor, owed: Tensor) -> None:
        """Spread a drop that no later step could take over the features, in proportion to what they already have.

        Where no gradient was sound there is nothing to scale, and the completeness gap says so.
        """
        total, size = values.flatten(1).sum(1), values.flatten(1).abs().sum(1)
        sound = total.abs() > self.guard * size
        values *= torch.where(sound, 1 + owed / torch.where(sound, total, 1), 1).reshape(-1, 1, 1, 1)
