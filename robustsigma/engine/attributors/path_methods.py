"""Gradients along paths to images, in chunks of the classifier: straight lines from baselines, and curves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import baselines
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Baseline
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_pass import split_sizes
from robustsigma.engine.scores import Score, target_score


class PathMethod(Attributor):
    """Base class of methods that sum gradients at `steps` points of paths that lead to the images."""

    steps: int

    @abstractmethod
    def lines(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> list[Line]:
        """Return the paths, at the cost of a forward pass each; the classifier is frozen."""


class BaselineAttributor(PathMethod):
    """Base class of methods with a `baseline` and a `score`; subclasses are frozen dataclasses with these fields."""

    baseline: Baseline
    score: Score

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", baselines.checked(self.baseline))
        validation.integer("steps", self.steps, 1)

    @property
    def stochastic(self) -> bool:
        """Whether the baseline depends on the seed."""
        return baselines.is_stochastic(self.baseline)

    def lines(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> list[Line]:
        """Return the line from each baseline."""
        high = target_score(logits, target, self.score).to(images.dtype)
        lines = []
        for base in baselines.make(self.baseline, images, seeds, classifier.bounds):
            low = classifier.score(base, target, self.score).to(images.dtype)
            lines.append(Line(classifier, images, base, target, self.score, high, low))
        return lines


class StraightLineAttributor(BaselineAttributor):
    """Base class of methods that integrate along the line from each baseline; values are the mean over baselines."""

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the mean over baselines; besides the passes of the lines, both ends cost one forward pass each."""
        lines = self.lines(classifier, images, target, logits, seeds)
        return mean_over_paths([self.integrate(line) for line in lines], forwards=1 + len(lines))

    @abstractmethod
    def integrate(self, line: Line) -> PathResult:
        """Return the attribution along one line; the classifier is frozen."""


@dataclass(frozen=True, eq=False)
class LineGradients:
    """Gradients at s points of the lines of g images, from one pass.

    Attributes:
        rows: which images.
        columns: which points of their lines; those of the same images come in ascending order.
        delta: (g, 1 or s, C, H, W), image - start of the line.
        scores: (g, s).
        gradients: (g, s, C, H, W).
    """

    rows: slice
    columns: slice
    delta: Tensor
    scores: Tensor
    gradients: Tensor

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum over points of weight * delta * gradient, (g, C, H, W), for weights (g or 1, s).

        It is a sum over an axis, not a scatter, so that every run on a GPU gives the same bits.
        """
        parts = self.gradients * weights[..., None, None, None]
        return parts.sum(1) * self.delta[:, 0] if self.delta.shape[1] == 1 else (parts * self.delta).sum(1)


def _slices(count: int, most: int) -> Iterator[slice]:
    """Yield slices of at most `most` that cover `count` items."""
    return (slice(a, b) for a, b in pairwise(accumulate(split_sizes(count, most), initial=0)) if b > a)


def rectangles(at: Tensor, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Yield rectangles of images x points (B, S) with at most `chunk` points each."""
    count, points = at.shape
    for rows in _slices(count, min(count, chunk)):
        for columns in _slices(points, max(1, chunk // (rows.stop - rows.start))):
            yield rows, columns


@dataclass(frozen=True, eq=False)
class Line:
    """The straight line from a baseline to each image. B images.

    Attributes:
        classifier: frozen.
        images: (B, C, H, W).
        base: (B, C, H, W).
        target: (B,).
        score: what is explained.
        high: (B,) the score of the images.
        low: (B,) the score of the baselines.
        start: gives for rows and columns of points (g, s, C, H, W), where each point's line starts; None takes `base`.
    """

    classifier: Classifier
    images: Tensor
    base: Tensor
    target: Tensor
    score: Score
    high: Tensor
    low: Tensor
    start: Callable[[slice, slice], Tensor] | None = None

    def _points(self, at: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Yield rows, columns, delta (g, 1 or s, C, H, W), points (g * s, C, H, W) and their targets (g * s,)."""
        for rows, columns in rectangles(at, self.classifier.chunk_size_for(self.images)):
            begin = self.base[rows, None] if self.start is None else self.start(rows, columns)
            delta = self.images[rows, None] - begin
            part = at[rows, columns]
            points = (begin + part[..., None, None, None] * delta).flatten(0, 1)
            yield rows, columns, delta, points, self.target[rows].repeat_interleave(part.shape[1])

    def gradients(self, at: Tensor) -> Iterator[LineGradients]:
        """Yield gradients at start + a (image - start) for a in `at` (B, S); one forward and backward pass a point.

        No tensor larger than a chunk of the classifier is made.
        """
        for rows, columns, delta, points, classes in self._points(at):
            logits, gradient = self.classifier.score_and_gradient(points, classes, self.score)
            shape = at[rows, columns].shape
            scores = target_score(logits, classes, self.score).to(self.images.dtype).reshape(shape)
            yield LineGradients(rows, columns, delta, scores, gradient.to(self.images.dtype).unflatten(0, shape))

    def scores(self, at: Tensor) -> Tensor:
        """Return the scores (B, S) at the same points; one forward pass a point."""
        result = torch.empty_like(at)
        for rows, columns, _, points, classes in self._points(at):
            part = result[rows, columns]
            part.copy_(self.classifier.score(points, classes, self.score).reshape(part.shape))
        return result

    def expanded(self, points: Sequence[float]) -> Tensor:
        """Return numbers that are the same for each image, (B, S)."""
        return torch.tensor(points, dtype=self.images.dtype, device=self.images.device).expand(len(self.images), -1)

    def weighted_sum(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of weight * delta * gradient over points, (B, C, H, W), and the points' scores (B, S)."""
        values, curve = torch.zeros_like(self.images), torch.empty_like(points)
        for part in self.gradients(points):
            values[part.rows] += part.weighted(weights[part.rows, part.columns])
            curve[part.rows, part.columns] = part.scores
        return values, curve


@dataclass(frozen=True, eq=False)
class CurvedPath(Line):
    """A path that may bend, from `base` to each image. Its points are equally spaced and the same for all images."""

    @abstractmethod
    def place(self, rows: slice, t: Tensor) -> Tensor:
        """Return the points at t (s,) of the paths of some images, (g, s, C, H, W); the image is at 1."""

    def _points(self, at: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Yield the same as for a line; delta is the change over the step of which the point is the middle."""
        half = 0.5 / at.shape[1]
        for rows, columns in rectangles(at, self.classifier.chunk_size_for(self.images)):
            t = at[0, columns]
            changes = self.place(rows, torch.cat([t - half, t[-1:] + half]).clamp(0, 1)).diff(dim=1)
            classes = self.target[rows].repeat_interleave(len(t))
            yield rows, columns, changes, self.place(rows, t).flatten(0, 1), classes

    def integrated(self, steps: int) -> PathResult:
        """Return the sum over steps of the gradient in a step's middle times the step's change of the image."""
        middles = self.expanded([(step + 0.5) / steps for step in range(steps)])
        return PathResult(self, *self.weighted_sum(middles, torch.ones_like(middles)))


class PathResult:
    """The result of a method on one line. B images, S points.

    Args:
        line: the line.
        values: (B, C, H, W).
        curve: (B, S) scores, from the baseline to the image.
        drop: (B,) what the values should sum to; the difference of both ends where None.
        steps: int64 (B,); S where None.
        converged: (B,) bool; True where None.
        forwards: forward passes for each image, beyond one for the gradient at each point.
        backwards: backward passes, likewise.
        valid: (B,) share of the gradients that were used; None where all were.
    """

    def __init__(
        self,
        line: Line,
        values: Tensor,
        curve: Tensor,
        *,
        drop: Tensor | None = None,
        steps: Tensor | None = None,
        converged: Tensor | None = None,
        forwards: int | Tensor = 0,
        backwards: int | Tensor = 0,
        valid: Tensor | None = None,
    ) -> None:
        points = torch.full((len(curve),), curve.shape[1], device=curve.device)
        self.line, self.values, self.valid = line, values, valid
        self.drop = line.high - line.low if drop is None else drop
        self.steps = points if steps is None else steps
        self.converged = torch.ones_like(points, dtype=torch.bool) if converged is None else converged
        self.forwards, self.backwards = points + forwards, points + backwards
        # From the image to the baseline, as every method's curve starts at the image.
        self.confidence = torch.cat([line.high[:, None], curve.flip(1), line.low[:, None]], 1)


def mean_over_paths(paths: Sequence[PathResult], *, forwards: int, backwards: int = 0) -> Attribution:
    """Return the mean over paths; `forwards` and `backwards` are passes for each image beyond those of its paths."""
    many = len(paths) > 1
    used = [path.valid for path in paths if path.valid is not None]
    maps = torch.stack([path.values.abs().sum(1) for path in paths], 1)
    return Attribution(
        values=sum((path.values for path in paths[1:]), paths[0].values) / len(paths),
        target=paths[0].line.target,
        endpoint=paths[0].line.base,
        drop=torch.stack([path.drop for path in paths]).mean(0),
        confidence=torch.stack([path.confidence for path in paths], 1),
        steps=torch.stack([path.steps for path in paths], 1),
        converged=torch.stack([path.converged for path in paths], 1),
        forwards=forwards + torch.stack([path.forwards for path in paths]).sum(0),
        backwards=backwards + torch.stack([path.backwards for path in paths]).sum(0),
        stderr=maps.std(1) / len(paths) ** 0.5 if many else None,
        endpoints=torch.stack([path.line.base for path in paths], 1) if many else None,
        valid=torch.stack(used).mean(0) if used else None,
    )
