"""Credible path attribution: baselines with the image's logits, and gradients of valid features only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import blur
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor, frozen_tensor
from robustsigma.engine.attributors.path_methods import Line, LineGradients, PathResult, mean_over_paths
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score

_LEAST_BLUR = 0.5  # standard deviation in pixels; a smaller blur does nothing
_SLACK = 1e-4  # gradients of one linear piece are equal up to rounding
_PER_IMAGE = (-1, 1, 1, 1)


class _Search(NamedTuple):
    """The result of a baseline search: base (B, C, H, W), its logits (B, K), found (B,) bool, passes (B,) int64."""

    base: Tensor
    logits: Tensor
    found: Tensor
    passes: Tensor


@dataclass(frozen=True)
class CrediblePath(Attributor):
    """PathResult attribution from baselines with the image's logits but none of its pixels (Akhtar and Jalwana, 2023).

    A baseline (algorithm 1, definition 6) is the blurred image, moved by signed gradient steps until its logits are
    within `tolerance` of the image's, with every pixel at least `gap` away from the image's. On the line from it
    (algorithm 2) a gradient counts for a feature where it has the sign of the gradient at the image and is not
    larger (definition 7). Values are the image minus the baseline, times the mean of the gradients that count, and 0
    where none does. They do not sum to the drop F(x) - F(x'), the mean over baselines, which such baselines make small.

    Decided where the text is ambiguous or slips: the search descends 1/2 ||z(x) - z(u)||^2, which is what it should
    make small. It halves the step where that brought the logits no closer, and takes at most `max_search` steps; the
    closest point is used, with `converged` False where it is not close enough. A pixel that cannot move away from the
    image's within the bounds moves to the other side. Gradients are compared with gradients, and an equal one counts:
    definition 7's strict inequality would discard every point of the linear piece that definition 6 asks for, and with
    it the paper's example 2. `published.LiteralCrediblePath` reads the algorithms literally.

    Args:
        steps: points in all, steps // number of blurs for each baseline; 150 in the paper.
        blurs: standard deviation of the blur for each baseline, as shares of the image's shorter side.
        step_size: first step size of the search, in pixel units of [0, 1]. Like the next two, not in the paper's text.
        gap: least distance of every pixel from the image's, at most 0.25.
        tolerance: ||z(x) - z(x')|| to be reached, as a share of ||z(x)||.
        max_search: steps of the search.
        objective: loss that the search descends: "logits", 1/2 ||z(x) - z(u)||^2, or "cross_entropy" of the target,
            as in algorithm 1.
        reverse: a gradient counts where it is not smaller than the one at the image, as the caption of figure 2 has it,
            instead of not larger (definition 7).
        divisor: divisor of the summed gradients: "count" is the number of gradients that counted for the feature, as in
            the paper; "steps" is the number of points, as in a Riemann sum.
        score: F.
        alphas: points in [0, 1] to use instead of uniformly drawn ones; a shape that expands to (B, blurs, points).

    Example:
        >>> CrediblePath()(classifier, images, target, seed=0).heatmap()
    """

    steps: int = 150
    blurs: Sequence[float] = (3 / 224, 5 / 224, 7 / 224)
    step_size: float = 1 / 255
    gap: float = 2 / 255
    tolerance: float = 0.1
    max_search: int = 100
    objective: Literal["logits", "cross_entropy"] = "logits"
    reverse: bool = False
    divisor: Literal["count", "steps"] = "count"
    score: Score = "logit"
    alphas: Tensor | FrozenTensor | None = None

    def __post_init__(self) -> None:
        validation.shares("blurs", self.blurs)
        validation.integer("steps", self.steps, len(self.blurs))
        validation.number("step_size", self.step_size, 0, 1, open_low=True)
        validation.number("gap", self.gap, 0, 0.25)
        validation.number("tolerance", self.tolerance, 0)
        validation.integer("max_search", self.max_search, 0)
        object.__setattr__(self, "alphas", frozen_tensor("alphas", self.alphas, floating=True))

    @property
    def stochastic(self) -> bool:
        """Whether the points of the path are drawn."""
        return self.alphas is None

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the attribution; a forward and backward pass a search step, a point, and one at the image."""
        _, reference = classifier.score_and_gradient(images, target, self.score)
        reference = reference.to(images.dtype)
        high = target_score(logits, target, self.score).to(images.dtype)
        points = self._points(images, seeds)
        paths = []
        for place, share in enumerate(self.blurs):
            start = blur(images, max(share * min(images.shape[2:]), _LEAST_BLUR))
            search = self._search(classifier, images, target, logits, start)
            low = target_score(search.logits, target, self.score).to(images.dtype)
            line = Line(classifier, images, search.base, target, self.score, high, low)
            paths.append(self._path(line, reference, points[:, place], search))
        return mean_over_paths(paths, forwards=2, backwards=1)

    def _points(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Return sorted points (B, baselines, steps // baselines)."""
        shape = (len(self.blurs), self.steps // len(self.blurs))
        if not isinstance(self.alphas, FrozenTensor):
            return noise.uniform(noise.fold(seeds, "credible_path"), shape, images.dtype).sort(dim=2).values
        return self.alphas.expanded("alphas", (len(images), *shape), images).sort(dim=2).values

    def _search(self, classifier: Classifier, images: Tensor, target: Tensor, goal: Tensor, start: Tensor) -> _Search:
        """Find a baseline for each image (algorithm 1); finished images are left out of further passes."""
        limit = self.tolerance * goal.norm(dim=1)
        distance, size = torch.full_like(limit, torch.inf), torch.full_like(limit, self.step_size)
        best, best_logits = start.clone(), goal.clone()
        passes = torch.zeros_like(target)
        rows = torch.arange(len(images), device=images.device)
        point = self._apart(start, images, classifier.bounds)
        for _ in range(self.max_search + 1):
            logits, gradient = self._descent(classifier, point, target[rows], goal[rows])
            passes[rows] += 1
            now = (logits.to(goal) - goal[rows]).norm(dim=1)
            better = now < distance[rows]
            size[rows] = self._step_sizes(size[rows], better)
            distance[rows] = torch.where(better, now, distance[rows])
            best[rows] = torch.where(better.reshape(_PER_IMAGE), point, best[rows])
            best_logits[rows] = torch.where(better[:, None], logits.to(goal), best_logits[rows])
            kept = (distance[rows] > limit[rows]).nonzero()[:, 0]
            if len(kept) == 0:
                break
            rows, point, gradient = rows[kept], point[kept], gradient[kept]
            moved = point - size[rows].to(point).reshape(_PER_IMAGE) * gradient.sign().to(point.dtype)
            point = self._apart(moved, images[rows], classifier.bounds)
        return _Search(best, best_logits, (distance <= limit) & distance.isfinite(), passes)

    def _descent(self, classifier: Classifier, point: Tensor, target: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the gradient of what the search makes small."""
        if self.objective == "cross_entropy":
            return classifier.loss_gradient(point, target)
        return classifier.gradient_of(
            lambda logits, at: F.mse_loss(logits, at.to(logits), reduction="sum") / 2, point, goal
        )

    def _step_sizes(self, size: Tensor, better: Tensor) -> Tensor:
        """Return the next step sizes (R,) of the search."""
        return torch.where(better, size, size / 2)

    def _apart(self, point: Tensor, images: Tensor, bounds: tuple[float, float]) -> Tensor:
        """Return points in bounds whose pixels keep the gap to the images' (lines 4 to 7 of algorithm 1)."""
        point = point.clamp(*bounds)
        close = (images - point).abs() < self.gap
        gap = torch.full_like(point, self.gap)
        side = torch.where(point < images, -gap, gap)
        away = point + side
        outside = (away < bounds[0]) | (away > bounds[1])
        return torch.where(close, torch.where(outside, images - side, away), point)

    def _path(self, line: Line, reference: Tensor, points: Tensor, search: _Search) -> PathResult:
        """Return the attribution along one line (algorithm 2)."""
        total, count = torch.zeros_like(line.images), torch.zeros_like(line.images)
        curve = torch.empty_like(points)
        for part in line.gradients(points):
            counts = self._valid(reference[part.rows, None], part, points[part.rows, part.columns])
            total[part.rows] += (part.gradients * counts).sum(1)
            count[part.rows] += counts.sum(1)
            curve[part.rows, part.columns] = part.scores
        divisor = count.clamp(min=1) if self.divisor == "count" else points.shape[1]
        return PathResult(
            line,
            (line.images - line.base) * total / divisor,
            curve,
            converged=search.found,
            forwards=search.passes,
            backwards=search.passes,
            valid=count.flatten(1).mean(1) / points.shape[1],
        )

    def _valid(self, at_image: Tensor, part: LineGradients, points: Tensor) -> Tensor:
        """Return whether each gradient counts (definition 7), bool (g, s, C, H, W), at points (g, s) of the lines."""
        along = part.gradients
        smaller, larger = (at_image.abs(), along.abs()) if self.reverse else (along.abs(), at_image.abs())
        return (along.sign() == at_image.sign()) & (smaller <= (1 + _SLACK) * larger)
