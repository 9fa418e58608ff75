"""Gradients along straight lines: images x points in chunks of the classifier, with a running sum for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from robustsigma.engine.attributors.base import Attribution
from robustsigma.engine.chunks import split_sizes
from robustsigma.engine.classifier import Classifier, Score, target_score

Start = Callable[[slice, slice], Tensor]


@dataclass(frozen=True, eq=False)
class Block:
    """Gradients at s points of the lines of g images, from one pass.

    Attributes:
        rows: which images.
        columns: which points of their lines; blocks of the same images come in the order of the points.
        way: (g, 1 or s, C, H, W) image - start of the line.
        scores: (g, s).
        gradients: (g, s, C, H, W).
    """

    rows: slice
    columns: slice
    way: Tensor
    scores: Tensor
    gradients: Tensor

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum over points of weight * way * gradient, (g, C, H, W), for weights (g or 1, s).

        A sum over an axis, not a scatter: it has the same bits in every run on a GPU.
        """
        shares = self.gradients * weights[..., None, None, None]
        return shares.sum(1) * self.way[:, 0] if self.way.shape[1] == 1 else (shares * self.way).sum(1)


def _parts(count: int, most: int) -> Iterator[slice]:
    """Yield slices of at most `most` that cover `count` items."""
    ends = accumulate(split_sizes(count, most), initial=0)
    return (slice(a, b) for a, b in pairwise(ends) if b > a)


def _blocks(at: Tensor, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Yield rectangles of images x points (B, S) with at most `chunk` points each."""
    count, points = at.shape
    for rows in _parts(count, min(count, chunk)):
        for columns in _parts(points, max(1, chunk // (rows.stop - rows.start))):
            yield rows, columns


def _pieces(
    classifier: Classifier, images: Tensor, target: Tensor, at: Tensor, start: Start
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Yield rows, columns, way (g, 1 or s, C, H, W), points (g * s, C, H, W) and their targets (g * s,)."""
    for rows, columns in _blocks(at, classifier.chunk_for(images)):
        begin = start(rows, columns)
        way = images[rows, None] - begin
        part = at[rows, columns]
        points = (begin + part[..., None, None, None] * way).flatten(0, 1)
        yield rows, columns, way, points, target[rows].repeat_interleave(part.shape[1])


def gradient_blocks(
    classifier: Classifier, images: Tensor, target: Tensor, score: Score, at: Tensor, start: Start
) -> Iterator[Block]:
    """Yield gradients of the score at start + a (image - start), one forward and one backward pass a point.

    Nothing larger than a chunk is made.

    Args:
        classifier: frozen.
        images: (B, C, H, W).
        target: (B,).
        score: whose gradient.
        at: (B, S) the a of each point.
        start: gives for rows and columns (g, 1 or s, C, H, W), where the lines start.
    """
    for rows, columns, way, points, classes in _pieces(classifier, images, target, at, start):
        logits, gradient = classifier.score_and_gradient(points, classes, score)
        shape = at[rows, columns].shape
        scores = target_score(logits, classes, score).to(images.dtype).reshape(shape)
        yield Block(rows, columns, way, scores, gradient.to(images.dtype).unflatten(0, shape))


def scores_along(
    classifier: Classifier, images: Tensor, target: Tensor, score: Score, at: Tensor, start: Start
) -> Tensor:
    """Return the scores (B, S) at the points of `gradient_blocks`, one forward pass a point."""
    result = torch.empty_like(at)
    for rows, columns, _, points, classes in _pieces(classifier, images, target, at, start):
        part = result[rows, columns]
        part.copy_(classifier.score(points, classes, score).reshape(part.shape))
    return result


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
    """

    classifier: Classifier
    images: Tensor
    base: Tensor
    target: Tensor
    score: Score
    high: Tensor
    low: Tensor

    def _start(self, rows: slice, columns: slice) -> Tensor:
        return self.base[rows, None]

    def gradients(self, at: Tensor) -> Iterator[Block]:
        """Yield gradients at the points at (B, S), from the baseline's end 0 to the image's end 1."""
        return gradient_blocks(self.classifier, self.images, self.target, self.score, at, self._start)

    def scores(self, at: Tensor) -> Tensor:
        """Return the scores (B, S) at the points at (B, S); a forward pass a point."""
        return scores_along(self.classifier, self.images, self.target, self.score, at, self._start)

    def everywhere(self, points: Sequence[float]) -> Tensor:
        """Return points that are the same for each image, (B, S)."""
        return torch.tensor(points, dtype=self.images.dtype, device=self.images.device).expand(len(self.images), -1)


@dataclass(frozen=True, eq=False)
class Path:
    """What a method made of one line. B images, S points.

    Attributes:
        line: that was followed.
        values: (B, C, H, W).
        curve: (B, S) scores, from the baseline to the image.
        drop: (B,) what the values should sum to.
        steps: (B,) int64.
        converged: (B,) bool.
        forwards: (B,) int64, those of the gradients included.
        backwards: (B,) int64.
        valid: (B,) share of the gradients used, or None for all.
    """

    line: Line
    values: Tensor
    curve: Tensor
    drop: Tensor
    steps: Tensor
    converged: Tensor
    forwards: Tensor
    backwards: Tensor
    valid: Tensor | None

    @staticmethod
    def of(
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
    ) -> Path:
        """Return a path; passes are those beyond the gradient at each point."""
        each = torch.full((len(curve),), curve.shape[1], device=curve.device)
        return Path(
            line=line,
            values=values,
            curve=curve,
            drop=line.high - line.low if drop is None else drop,
            steps=each if steps is None else steps,
            converged=torch.ones_like(each, dtype=torch.bool) if converged is None else converged,
            forwards=each + forwards,
            backwards=each + backwards,
            valid=valid,
        )


def average_over_baselines(
    classifier: Classifier,
    images: Tensor,
    target: Tensor,
    logits: Tensor,
    score: Score,
    bases: Sequence[Tensor],
    integrate: Callable[[Line], Path],
) -> Attribution:
    """Return the mean over baselines of what `integrate` makes of the line from each."""
    high = target_score(logits, target, score).to(images.dtype)
    paths = []
    for base in bases:
        low = classifier.score(base, target, score).to(images.dtype)
        paths.append(integrate(Line(classifier, images, base, target, score, high, low)))
    return mean(paths, forwards=1 + len(bases))


def mean(paths: Sequence[Path], *, forwards: int, backwards: int = 0) -> Attribution:
    """Return the mean over paths; passes are those of each image beyond its paths'."""
    line = paths[0].line
    many = len(paths) > 1
    shares = [path.valid for path in paths if path.valid is not None]
    maps = torch.stack([path.values.abs().sum(1) for path in paths], 1) if many else None
    return Attribution(
        values=sum((path.values for path in paths[1:]), paths[0].values) / len(paths),
        target=line.target,
        endpoint=line.base,
        drop=torch.stack([path.drop for path in paths]).mean(0),
        confidence=torch.stack([_from_image(path.line, path.curve) for path in paths], 1),
        steps=torch.stack([path.steps for path in paths], 1),
        converged=torch.stack([path.converged for path in paths], 1),
        forwards=forwards + torch.stack([path.forwards for path in paths]).sum(0),
        backwards=backwards + torch.stack([path.backwards for path in paths]).sum(0),
        stderr=None if maps is None else maps.std(1) / len(paths) ** 0.5,
        endpoints=torch.stack([path.line.base for path in paths], 1) if many else None,
        valid=torch.stack(shares).mean(0) if shares else None,
    )


def _from_image(line: Line, curve: Tensor) -> Tensor:
    """Return the curve with both ends, from the image to the baseline, as every method's curve starts at the image."""
    return torch.cat([line.high[:, None], curve.flip(1), line.low[:, None]], 1)
