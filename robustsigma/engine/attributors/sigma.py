"""SIGMA: the self-guided integrated gradient method for attribution, and its zero-confidence samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor, frozen_tensor
from robustsigma.engine.attributors.spsa_walk import RangeMode, SpsaWalk, Walk
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_pass import split_sizes
from robustsigma.engine.noise import Noise
from robustsigma.engine.scores import Score, target_score

# Rows (images x paths) walked at once, in chunks of the classifier: enough to fill passes while rows finish.
_CHUNKS_PER_GROUP = 2
# Paths of the first round where `relative_stderr` decides their number. Each later round adds half as many as there
# are, so that rounds are few and at most a third of the paths is more than was needed.
_FIRST_ROUND = 4
_MAX_SIZE = 1e30  # single precision holds no more than 3e38, nor the products of such numbers


@dataclass(frozen=True)
class Sigma(Attributor):
    """SIGMA (Henry, Ruget, Scholes and Leach, 2025, algorithm 1 and eq. 4).

    From the image an SPSA walk descends the confidence p of the target: D_k random, h = (f(s_k + b D_k) -
    f(s_k - b D_k)) / 2b, s_{k+1} = s_k - a h D_k, until p <= epsilon. Each step's gradient at the new point is scaled
    so that it sums to the drop in confidence, and the steps are summed: `values` sum to the drop of p. Values are the
    mean over paths. A step costs 3 forward passes and 1 backward pass a path.

    Decided where paper and code differ: patterns have amplitude (high - low) / 2, which reproduces the published
    a and b; evaluated points are mapped to the image's own [min, max]; the gradient is of log p (the same as of p
    after scaling, without its underflow). `published.AuthorsSigma` reproduces the authors' code.

    Args:
        alpha: step size a.
        beta: size b of the two probes, in units of half the pixel range.
        epsilon: confidence at which a path has converged.
        paths: number of walks averaged; more make the map smoother and give its standard error.
        max_steps: a path that has not converged by then is returned with `converged` False.
        objective: f, what the walk descends. "prob" is the paper's; on confident networks it stands still where p
            rounds to 1. "log_prob" keeps its digits there, though its slope is as small as 1 - p; "logit" has no
            ceiling. The path still ends by p.
        noise: pattern D, zero-mean: "bernoulli" (the paper's), "gaussian", "uniform" or "perlin".
        noise_scale: pixels between the lattice points of Perlin noise.
        range_mode: "original" maps evaluated points affinely to the image's own [min, max], "full" to the whole
            pixel range (after the first step, so that the path still starts at the image), "clip" clips. "none"
            evaluates probes wherever they lie; the points of the path, which are returned, are clipped all the same.
        min_sum_ratio: a gradient whose |sum| is at most this share of its sum of magnitudes is not scaled: its drop is
            carried to the next step, so that completeness holds without one map outweighing all others. The result's
            `valid` is the share of the steps whose gradients were scaled.
        weighting: what a step's gradient is divided by. "signed", its sum, is the paper's and complete. "abs", the sum
            of its magnitudes, is for networks whose gradients sum to zero, where "signed" leaves no map: a step
            then moves as much attribution as the confidence dropped, `values` do not sum to `drop`, and only gradients
            that are zero or not finite are not scaled. Experimental, not in the paper.
        adaptive: limits (low, high) of Barzilai and Borwein's step size, which then takes the place of `alpha`
            (in the authors' code, not in the paper): <dx, dx> / <dx, dg> of the last two points and slope estimates.
        normalized: whether only the sign of h counts, not its size (not in the paper): a step then moves a pixel by at
            most `alpha` times half the pixel range, so that one `alpha` suits networks whose scores differ in scale.
            Not with `adaptive`.
        relative_stderr: paths of an image are made in rounds until the standard error of the mean of their heatmaps,
            relative to that mean (both as root sums of squares over pixels), is at most this; `paths` is then the most.
            Paths that were not walked have NaN confidence, 0 steps and the image as end. None walks `paths`.
        patience: a path is stopped, unconverged, after so many steps in a row whose two probes have equal scores.
        patterns: D_k to use instead of drawn ones, (steps, paths, C, H, W) in pixel units of [0, 1], the same for every
            image; a path that uses them up ends there. Drawn ones are +-0.5.

    Example:
        >>> sigma = Sigma(objective="logit", alpha=0.01, beta=0.1, paths=3, max_steps=50)
        >>> result = sigma(classifier, images, target, seed=0)
        >>> result.heatmap(), result.stderr, result.endpoint, result.converged
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
    min_sum_ratio: float = 1e-4
    weighting: Literal["signed", "abs"] = "signed"
    adaptive: tuple[float, float] | None = None
    normalized: bool = False
    relative_stderr: float | None = None
    patience: int = 100
    patterns: Tensor | FrozenTensor | None = None

    walk_class: ClassVar[type[SpsaWalk]] = SpsaWalk
    first_passes: ClassVar[int] = 1  # forward passes before the first step

    def __post_init__(self) -> None:
        validation.number("alpha", self.alpha, 0, _MAX_SIZE, open_low=True)
        validation.number("beta", self.beta, 0, _MAX_SIZE, open_low=True)
        validation.number("epsilon", self.epsilon, 0, 1, open_low=True)
        validation.integer("paths", self.paths, 1)
        validation.integer("max_steps", self.max_steps, 1)
        validation.integer("noise_scale", self.noise_scale, 1)
        validation.number("min_sum_ratio", self.min_sum_ratio, 0, 1)
        validation.integer("patience", self.patience, 1)
        if self.adaptive is not None:
            if not isinstance(self.adaptive, tuple) or len(self.adaptive) != 2:
                raise validation.fail("adaptive", "a pair (low, high) or None", repr(self.adaptive))
            validation.number("adaptive[0]", self.adaptive[0], 0, open_low=True)
            validation.number("adaptive[1]", self.adaptive[1], self.adaptive[0])
        if self.normalized and self.adaptive is not None:
            raise validation.fail("normalized", "False beside `adaptive`, another rule of the step size", True)
        if self.relative_stderr is not None:
            validation.number("relative_stderr", self.relative_stderr, 0, open_low=True)
            validation.integer("paths", self.paths, 2)
        object.__setattr__(self, "patterns", frozen_tensor("patterns", self.patterns, floating=True))
        if isinstance(self.patterns, FrozenTensor):
            shape = tuple(self.patterns.tensor.shape)
            if len(shape) != 5 or shape[1] != self.paths:
                raise validation.fail("patterns", f"shape (steps, {self.paths}, C, H, W)", f"shape {shape}")

    @classmethod
    def paper(cls) -> Sigma:
        """Return the settings of the paper's experiments (section 4.2)."""
        return cls(alpha=0.1, beta=0.5, epsilon=0.01, paths=7)

    @classmethod
    def photographs(cls) -> Sigma:
        """Return settings for photographs of about 224 x 224 pixels (results/sigma_photographs.json).

        Perlin patterns of 24 pixels lower the confidence in fewer steps, and leave more of the image, than independent
        pixels do. Normalized steps need no `alpha` of each network. Clipped points keep the size of their steps, where
        an affine map shrinks image and steps the more, the longer the walk has been.
        """
        walk = cls(alpha=0.4, beta=0.4, max_steps=100, objective="log_prob", normalized=True)
        return replace(walk, noise="perlin", noise_scale=24, range_mode="clip")

    @property
    def stochastic(self) -> bool:
        """Whether patterns are drawn."""
        return self.patterns is None

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the attribution, mean over paths."""
        start = self._start_confidence(classifier, images, target, logits)
        rows = torch.arange(len(images), device=images.device)  # images that need more paths
        total, rounds, made = torch.zeros_like(images), [], 0
        while made < self.paths and len(rows) > 0:
            count = self._paths_in_round(made)
            walk, maps, sums = self._attributed_paths(
                classifier, images[rows], target[rows], start[rows], seeds[rows], range(made, made + count)
            )
            total.index_add_(0, rows, sums)
            # Of all images; a path that was not walked is NaN, of zero steps, and ends at its image.
            ends = images[:, None].repeat(1, count, 1, 1, 1).index_copy(0, rows, walk.ends.unflatten(0, (-1, count)))
            curve = _on_rows(walk.curve.unflatten(0, (-1, count)), rows, len(images), torch.nan)
            steps = _on_rows(walk.steps.unflatten(0, (-1, count)), rows, len(images), 0)
            unscaled = _on_rows(walk.unscaled.unflatten(0, (-1, count)), rows, len(images), 0)
            rounds.append((ends, steps, unscaled, _on_rows(maps, rows, len(images), torch.nan), curve))
            made += count
            walked, mean, stderr = self._spread(torch.cat([each[3] for each in rounds], 1))
            if self.relative_stderr is not None:
                unsure = stderr.flatten(1).norm(dim=1) > self.relative_stderr * mean.flatten(1).norm(dim=1)
                rows = rows[unsure[rows]]
        *columns, curves = zip(*rounds, strict=True)
        ends, steps, unscaled, _ = (torch.cat(column, 1) for column in columns)
        curve = _padded(curves, 1)
        last = curve.gather(2, steps[..., None])[..., 0]
        return Attribution(
            values=total / walked.reshape(-1, 1, 1, 1),
            target=target,
            endpoint=ends[:, 0],
            drop=(start[:, None] - last).nanmean(1),
            confidence=curve,
            steps=steps,
            converged=last <= self.epsilon,
            forwards=3 * steps.sum(1) + self.first_passes,
            backwards=steps.sum(1),
            stderr=stderr if self.paths > 1 else None,
            endpoints=ends,
            valid=(1 - unscaled.sum(1) / steps.sum(1).clamp(min=1)).to(images.dtype),
        )

    def sample(self, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor) -> Walk:
        """Return path 0 alone, without gradients: 3 forward passes a step. Call inside `classifier.frozen()`.

        The ends are those that `attribute` finds for path 0, up to the rounding of another batch size.
        """
        start = self._start_confidence(classifier, images, target, None)
        return _joined([*self._walks(classifier, images, target, start, seeds, range(1), gradients=False)])

    def path(self, classifier: Classifier, image: Tensor, target: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points (S + 1, C, H, W) of path 0 of one image (1, C, H, W), and the confidence at each, (S + 1,).

        Call inside `classifier.frozen()`; 3 forward passes a step.
        """
        walk = self.walk_class(self, classifier, image, target, seeds, torch.zeros_like(target))
        points = [image]
        start = self._start_confidence(classifier, image, target, None)
        found = walk.run(start, gradients=False, visited=points)
        return torch.cat(points).to(image.dtype), found.curve[0]

    def _start_confidence(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor | None
    ) -> Tensor:
        """Return p at the start of the walk, (B,); `logits` are those of the images where they are known."""
        return target_score(classifier.logits(images) if logits is None else logits, target, "prob").to(images.dtype)

    def _paths_in_round(self, made: int) -> int:
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
    ) -> Iterator[Walk]:
        """Walk all images x paths in groups of whole images that bound the memory; groups do not change results."""
        if isinstance(self.patterns, FrozenTensor) and self.patterns.tensor.shape[2:] != images.shape[1:]:
            got = f"shape {tuple(self.patterns.tensor.shape)}"
            raise validation.fail("patterns", f"shape (steps, paths, {', '.join(map(str, images.shape[1:]))})", got)
        size = max(1, _CHUNKS_PER_GROUP * classifier.chunk_size_for(images) // len(paths))
        lengths = split_sizes(len(images), size)
        path = torch.arange(paths.start, paths.stop, device=images.device)
        for group in zip(*(t.split(lengths) for t in (images, target, start, seeds)), strict=True):
            x, at, confidence, keys = (t.repeat_interleave(len(paths), 0) for t in group)
            walk = self.walk_class(self, classifier, x, at, keys, path.repeat(len(group[0])))
            yield walk.run(confidence, gradients=gradients)

    def _attributed_paths(
        self, classifier: Classifier, images: Tensor, target: Tensor, start: Tensor, seeds: Tensor, paths: range
    ) -> tuple[Walk, Tensor, Tensor]:
        """Return the given paths, their heatmaps (B, P, H, W) and the sum over paths of their values (B, C, H, W)."""
        walks, maps, sums = [], [], []
        for walk in self._walks(classifier, images, target, start, seeds, paths, gradients=True):
            assert walk.values is not None
            values, walk.values = walk.values.unflatten(0, (-1, len(paths))), None
            maps.append(values.abs().sum(2))
            sums.append(self._summed(values))
            walks.append(walk)
        return _joined(walks), torch.cat(maps), torch.cat(sums)

    def _summed(self, values: Tensor) -> Tensor:
        """Return the sum over paths of values (B, P, C, H, W)."""
        return values.sum(1)

    def _spread(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the number of walked paths (B,), the mean of their maps and its standard error, both (B, H, W)."""
        walked = (~maps[:, :, 0, 0].isnan()).sum(1)
        count = walked.reshape(-1, 1, 1)
        mean = maps.nansum(1) / count
        squares = (maps - mean[:, None]).square().nansum(1)
        return walked, mean, self._standard_error(squares, count)

    def _standard_error(self, squares: Tensor, count: Tensor) -> Tensor:
        """Return the standard error of the mean of `count` maps with this sum of squared deviations."""
        return (squares / (count - 1).clamp(min=1) / count).sqrt()


def _joined(walks: list[Walk]) -> Walk:
    """Return the rows of all walks in one, without values."""
    names = ("ends", "latents", "steps", "unscaled")
    parts = {name: torch.cat([getattr(walk, name) for walk in walks]) for name in names}
    return Walk(**parts, curve=_padded([walk.curve for walk in walks], 0), values=None)


def _on_rows(values: Tensor, rows: Tensor, count: int, blank: float) -> Tensor:
    """Return `count` rows, of which the given ones hold the values and the others are blank."""
    return values.new_full((count, *values.shape[1:]), blank).index_copy(0, rows, values)


def _padded(curves: tuple[Tensor, ...] | list[Tensor], dim: int) -> Tensor:
    """Join curves of different lengths along `dim`, the shorter ones filled with NaN."""
    longest = max(c.shape[-1] for c in curves)
    return torch.cat([F.pad(c, (0, longest - c.shape[-1]), value=torch.nan) for c in curves], dim)
