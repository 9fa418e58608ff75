"""SIGMA: the self-guided integrated gradient method for attribution, and its zero-confidence samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Given, given
from robustsigma.engine.attributors.image_range import AUTHORS_UNIT, RANGE_MODES, AuthorsRange, RangeMode
from robustsigma.engine.attributors.spsa_walk import SpsaWalk, Walk
from robustsigma.engine.chunks import split_sizes
from robustsigma.engine.classifier import SCORES, Classifier, Score, target_score
from robustsigma.engine.noise import NOISES, Noise

# Rows (images x paths) walked at once, in chunks of the classifier: enough to fill passes while rows finish.
_CHUNKS_PER_GROUP = 2
# Paths of the first round where the number of paths is left to `relative_stderr`; each later round adds half as many
# as there are, so that the waits are few and at most a third of the paths is more than was needed.
_FIRST_ROUND = 4
_MOST = 1e30  # single precision holds no more than 3e38, nor the products of such numbers


@dataclass
class _Paths:
    """Paths made in one round. B images, P paths; a path that was not walked is NaN, of zero steps, at its image."""

    ends: Tensor
    curve: Tensor
    steps: Tensor
    guarded: Tensor
    maps: Tensor

    def among(self, rows: Tensor, images: Tensor) -> _Paths:
        """Return the round with all images in it, these paths in the given rows."""
        if len(rows) == len(images):
            return self

        def put(blank: Tensor, part: Tensor) -> Tensor:
            return blank.index_copy(0, rows, part)

        def nan(part: Tensor) -> Tensor:
            return part.new_full((len(images), *part.shape[1:]), torch.nan)

        paths = self.steps.shape[1]
        return _Paths(
            ends=put(images[:, None].repeat(1, paths, 1, 1, 1), self.ends),
            curve=put(nan(self.curve), self.curve),
            steps=put(self.steps.new_zeros(len(images), paths), self.steps),
            guarded=put(self.guarded.new_zeros(len(images), paths), self.guarded),
            maps=put(nan(self.maps), self.maps),
        )


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
            rounds to 1. "log_prob" keeps its digits there, though its slope is as small as 1 - p; "logit" has no
            ceiling. The path still ends by p.
        noise: pattern D, zero-mean: "bernoulli" (the paper's), "gaussian", "uniform" or "perlin".
        noise_scale: pixels between the lattice points of Perlin noise.
        range_mode: "original" maps evaluated points affinely to the image's own [min, max], "full" to the whole
            pixel range (after the first step, so that the path still starts at the image), "clip" clips. "none"
            evaluates probes wherever they lie; the points of the path, which are returned, are clipped all the same.
        guard: a gradient whose |sum| is at most this share of its sum of magnitudes is not scaled: its drop is
            carried to the next step, so that completeness holds without one map outweighing all others. The result's
            `valid` is the share of the steps that it let pass.
        weighting: what a step's gradient is divided by. "signed", its sum, is the paper's and complete. "abs", the sum
            of its magnitudes, is for networks whose gradients sum to nothing, where "signed" leaves no map: a step
            then moves as much attribution as the confidence dropped, `values` do not sum to `drop`, and the guard
            holds back only gradients that are zero or not finite. Experimental, not in the paper.
        adaptive: limits (low, high) of Barzilai and Borwein's step size, which then takes the place of `alpha`
            (in the authors' code, not in the paper): <dx, dx> / <dx, dg> of the last two points and slope estimates.
        relative_stderr: paths of an image are made in rounds until the standard error of the mean of their heatmaps,
            relative to that mean (both as root sums of squares over pixels), is at most this; `paths` is then the cap.
            Paths that were not walked have NaN confidence, 0 steps and the image as end. None walks `paths`.
        patience: a path whose probes told no difference for so many steps in a row is given up, unconverged.
        patterns: D_k given instead of drawn, (steps, paths, C, H, W) in pixel units of [0, 1], the same for every
            image; a path that uses them up ends there. Drawn ones are +-0.5, the published code's 0 or 1.
        variant: "authors" reproduces their PyTorch code: patterns of 0 or 1, every evaluated image (the first too)
            stretched to [0, 1], gradients of the logit with respect to the stretched image, 1e-10 added to their sum
            and no guard; `stderr` is the population standard deviation, and with several paths `values` are the mean
            of the paths' |values|, so that the heatmap is the mean of theirs. It fixes objective, noise, range_mode,
            guard and weighting.
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
    weighting: Literal["signed", "abs"] = "signed"
    adaptive: tuple[float, float] | None = None
    relative_stderr: float | None = None
    patience: int = 100
    patterns: Tensor | Given | None = None
    variant: Literal["sound", "authors"] = "sound"

    def __post_init__(self) -> None:
        validation.number("alpha", self.alpha, 0, _MOST, open_low=True)
        validation.number("beta", self.beta, 0, _MOST, open_low=True)
        validation.number("epsilon", self.epsilon, 0, 1, open_low=True)
        validation.integer("paths", self.paths, 1)
        validation.integer("max_steps", self.max_steps, 1)
        validation.choice("objective", self.objective, SCORES)
        validation.choice("noise", self.noise, NOISES)
        validation.integer("noise_scale", self.noise_scale, 1)
        validation.choice("range_mode", self.range_mode, RANGE_MODES)
        validation.number("guard", self.guard, 0, 1)
        validation.choice("weighting", self.weighting, ("signed", "abs"))
        validation.integer("patience", self.patience, 1)
        validation.choice("variant", self.variant, ("sound", "authors"))
        if self.adaptive is not None:
            if not isinstance(self.adaptive, tuple) or len(self.adaptive) != 2:
                raise validation.fail("adaptive", "a pair (low, high) or None", repr(self.adaptive))
            validation.number("adaptive[0]", self.adaptive[0], 0, open_low=True)
            validation.number("adaptive[1]", self.adaptive[1], self.adaptive[0])
        if self.relative_stderr is not None:
            validation.number("relative_stderr", self.relative_stderr, 0, open_low=True)
            validation.integer("paths", self.paths, 2)
        object.__setattr__(self, "patterns", given("patterns", self.patterns, floating=True))
        if isinstance(self.patterns, Given):
            shape = tuple(self.patterns.tensor.shape)
            if len(shape) != 5 or shape[1] != self.paths:
                raise validation.fail("patterns", f"shape (steps, {self.paths}, C, H, W)", f"shape {shape}")
        if self.variant == "authors":
            fixed = ("objective", "noise", "range_mode", "guard", "weighting", "relative_stderr")
            validation.defaults(self, fixed, 'variant="authors"')

    @classmethod
    def paper(cls) -> Sigma:
        """Return the settings of the paper's experiments (section 4.2)."""
        return cls(alpha=0.1, beta=0.5, epsilon=0.01, paths=7, objective="prob", noise="bernoulli")

    @property
    def stochastic(self) -> bool:
        """Whether patterns are drawn."""
        return self.patterns is None

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the attribution, mean over paths; each step costs 3 forward passes and 1 backward pass a path."""
        start = self._start(classifier, images, target, logits)
        rows = torch.arange(len(images), device=images.device)
        total = torch.zeros_like(images)
        rounds: list[_Paths] = []
        made = 0
        while made < self.paths and len(rows) > 0:
            count = self._round(made)
            part, values = self._paths(
                classifier, images[rows], target[rows], start[rows], seeds[rows], range(made, made + count)
            )
            total.index_add_(0, rows, values)
            rounds.append(part.among(rows, images))
            made += count
            walked, mean, stderr = self._spread(torch.cat([r.maps for r in rounds], 1))
            if self.relative_stderr is not None:
                unsure = stderr.flatten(1).norm(dim=1) > self.relative_stderr * mean.flatten(1).norm(dim=1)
                rows = rows[unsure[rows]]
        curve = _joined([r.curve for r in rounds])
        ends = torch.cat([r.ends for r in rounds], 1)
        steps = torch.cat([r.steps for r in rounds], 1)
        guarded = torch.cat([r.guarded for r in rounds], 1).sum(1)
        last = curve.gather(2, steps[..., None])[..., 0]
        authors = self.variant == "authors"
        return Attribution(
            values=total / walked.reshape(-1, 1, 1, 1),
            target=target,
            endpoint=ends[:, 0],
            drop=(start[:, None] - last).nanmean(1),
            confidence=curve,
            steps=steps,
            converged=last <= self.epsilon,
            # The first confidence comes from the image's own logits, the authors' from another pass.
            forwards=3 * steps.sum(1) + (2 if authors else 1),
            backwards=steps.sum(1),
            stderr=stderr if self.paths > 1 else None,
            endpoints=ends,
            valid=(1 - guarded / steps.sum(1).clamp(min=1)).to(images.dtype),
        )

    def sample(self, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor) -> Walk:
        """Return path 0 alone, without gradients: 3 forward passes a step. Call inside `classifier.frozen()`.

        The ends are those that `attribute` finds for path 0, up to the rounding of another batch size.
        """
        start = self._start(classifier, images, target, None)
        walks = self._walks(classifier, images, target, start, seeds, range(1), gradients=False)
        return Walk(
            ends=torch.cat([w.ends for w in walks]),
            latents=torch.cat([w.latents for w in walks]),
            curve=_joined([w.curve for w in walks], 0),
            steps=torch.cat([w.steps for w in walks]),
            guarded=torch.cat([w.guarded for w in walks]),
            values=None,
        )

    def _start(self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor | None) -> Tensor:
        """Return p at the start of the walk, (B,); `logits` are those of the images where they are known."""
        if self.variant == "authors":
            rows = torch.arange(len(images), device=images.device)
            stretched = AuthorsRange().probe((images * AUTHORS_UNIT).double(), rows)
            return classifier.logits(stretched).softmax(1).gather(1, target[:, None])[:, 0].to(images.dtype)
        return target_score(classifier.logits(images) if logits is None else logits, target, "prob").to(images.dtype)

    def _round(self, made: int) -> int:
        """Return how many paths to walk next."""
        if self.relative_stderr is None:
            return self.paths
        return min(_FIRST_ROUND if made == 0 else made // 2, self.paths - made)

    def _walks(
        self,
        classifier: Classifier,
        images: Tensor,
        target: Tensor,
        start: Tensor,
        seeds: Tensor,
        paths: range,
        *,
        gradients: bool,
    ) -> list[Walk]:
        """Walk all images x paths in groups of whole images that bound the memory; groups do not change results."""
        if isinstance(self.patterns, Given) and self.patterns.tensor.shape[2:] != images.shape[1:]:
            got = f"shape {tuple(self.patterns.tensor.shape)}"
            raise validation.fail("patterns", f"shape (steps, paths, {', '.join(map(str, images.shape[1:]))})", got)
        size = max(1, _CHUNKS_PER_GROUP * classifier.chunk_for(images) // len(paths))
        lengths = split_sizes(len(images), size)
        path = torch.arange(paths.start, paths.stop, device=images.device)
        walks = []
        for group in zip(*(t.split(lengths) for t in (images, target, start, seeds)), strict=True):
            x, at, confidence, keys = (t.repeat_interleave(len(paths), 0) for t in group)
            walk = SpsaWalk(self, classifier, x, at, keys, path.repeat(len(group[0])))
            walks.append(walk.run(confidence, gradients=gradients))
        return walks

    def _paths(
        self, classifier: Classifier, images: Tensor, target: Tensor, start: Tensor, seeds: Tensor, paths: range
    ) -> tuple[_Paths, Tensor]:
        """Return the given paths of every image, and the sum of their values (B, C, H, W)."""
        walks = self._walks(classifier, images, target, start, seeds, paths, gradients=True)
        shape = (len(images), len(paths))
        maps, sums = [], []
        for walk in walks:
            values = walk.values
            assert values is not None
            magnitudes = values.abs()
            maps.append(magnitudes.sum(1))
            summed = magnitudes if self.variant == "authors" and self.paths > 1 else values
            sums.append(summed.unflatten(0, (-1, len(paths))).sum(1))
            walk.values = None
        made = _Paths(
            ends=torch.cat([w.ends for w in walks]).unflatten(0, shape),
            curve=_joined([w.curve for w in walks], 0).unflatten(0, shape),
            steps=torch.cat([w.steps for w in walks]).unflatten(0, shape),
            guarded=torch.cat([w.guarded for w in walks]).unflatten(0, shape),
            maps=torch.cat(maps).unflatten(0, shape),
        )
        return made, torch.cat(sums)

    def _spread(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the number of walked paths (B,), the mean of their maps and its standard error, both (B, H, W)."""
        walked = (~maps[:, :, 0, 0].isnan()).sum(1)
        count = walked.reshape(-1, 1, 1)
        mean = maps.nansum(1) / count
        squares = (maps - mean[:, None]).square().nansum(1)
        if self.variant == "authors":
            return walked, mean, (squares / count).sqrt()
        return walked, mean, (squares / (count - 1).clamp(min=1) / count).sqrt()


def _joined(curves: list[Tensor], dim: int = 1) -> Tensor:
    """Join curves of different lengths along `dim`, the shorter ones filled with NaN."""
    longest = max(c.shape[-1] for c in curves)
    return torch.cat([F.pad(c, (0, longest - c.shape[-1]), value=torch.nan) for c in curves], dim)
