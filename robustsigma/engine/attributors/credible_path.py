"""Credible path attribution: a baseline that the network takes for the image, and gradients of valid features only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Given, blur, given
from robustsigma.engine.attributors.straight_line import Line, Path, mean
from robustsigma.engine.classifier import SCORES, Classifier, Score, target_score

# A blur of less than half a pixel does nothing.
_LEAST_BLUR = 0.5
# Gradients of one linear piece are equal but for rounding.
_SLACK = 1e-4


class _Search(NamedTuple):
    """Where a baseline search ended: base (B, C, H, W), its logits (B, K), found (B,) bool, passes (B,) int64."""

    base: Tensor
    logits: Tensor
    found: Tensor
    passes: Tensor


@dataclass(frozen=True)
class CrediblePath(Attributor):
    """Path attribution from baselines with the image's logits but none of its pixels (Akhtar and Jalwana, 2023).

    A baseline (algorithm 1, definition 6) is the blurred image, moved by signed gradient steps until its logits are
    within `tolerance` of the image's, with every pixel at least `gap` away from the image's. On the line from it
    (algorithm 2) a gradient counts for a feature where it has the sign of the gradient at the image and is not
    larger (definition 7). Values are the way times the mean of the gradients that count; where none does, 0. They
    do not sum to the drop F(x) - F(x') (the mean over baselines), which such baselines make small.

    Decided where the text is ambiguous or slips: the search descends 1/2 ||z(x) - z(u)||^2, which is what it should
    make small, halving the step where that did not come nearer, for at most `max_search` steps; the nearest point
    found is used, with `converged` False where it is not near enough; a pixel that cannot move away from the
    image's within the bounds moves to the other side.
    Gradients are compared with gradients, and an equal one counts: definition 7's strict inequality would discard
    every point of the linear piece that definition 6 asks for, and with it the paper's example 2.

    Args:
        steps: points in all, steps // number of blurs for each baseline; 150 in the paper.
        blurs: standard deviation of the blur for each baseline, as shares of the image's shorter side.
        step_size: of the search at first, in pixel units of [0, 1]. Like the next two, not in the paper's text.
        gap: least distance of every pixel from the image's, at most 0.25.
        tolerance: ||z(x) - z(x')|| to be reached, as a share of ||z(x)||.
        max_search: steps of the search.
        objective: what the search descends: "logits", 1/2 ||z(x) - z(u)||^2, or "cross_entropy" of the target, as in
            algorithm 1.
        reverse: a gradient counts where it is not smaller than the one at the image, as the caption of figure 2 has it,
            instead of not larger (definition 7).
        divisor: of the summed gradients: "count" is the paper's, how many counted for the feature, "steps" the
            Riemann sum's.
        score: F.
        alphas: the points in [0, 1] to use instead of uniform ones; a shape that expands to (B, blurs, points).
        variant: "authors" reads the algorithms literally (no code was published) but for separate sums and a count
            of 0: cross-entropy is descended, whatever `objective`, with equal steps, line 6 pushes pixels off the
            image's before line 7 clips, and |dF/dx| at the image is compared strictly with |(x - x~) dF/dx~|.
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
    alphas: Tensor | Given | None = None
    variant: Literal["sound", "authors"] = "sound"

    def __post_init__(self) -> None:
        if not isinstance(self.blurs, Sequence) or not self.blurs:
            raise validation.fail("blurs", "at least one number", repr(self.blurs))
        object.__setattr__(self, "blurs", tuple(self.blurs))
        for each in self.blurs:
            validation.number("blurs", each, 0, 1)
        validation.integer("steps", self.steps, len(self.blurs))
        validation.number("step_size", self.step_size, 0, 1, open_low=True)
        validation.number("gap", self.gap, 0, 0.25)
        validation.number("tolerance", self.tolerance, 0)
        validation.integer("max_search", self.max_search, 0)
        validation.choice("objective", self.objective, ("logits", "cross_entropy"))
        validation.instance("reverse", self.reverse, bool)
        validation.choice("divisor", self.divisor, ("count", "steps"))
        validation.choice("score", self.score, SCORES)
        validation.choice("variant", self.variant, ("sound", "authors"))
        object.__setattr__(self, "alphas", given("alphas", self.alphas, floating=True))

    @property
    def stochastic(self) -> bool:
        """Whether the noise of the path is drawn."""
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
        return mean(paths, forwards=2, backwards=1)

    def _points(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Return sorted points (B, baselines, steps // baselines)."""
        shape = (len(self.blurs), self.steps // len(self.blurs))
        if not isinstance(self.alphas, Given):
            return noise.uniform(noise.fold(seeds, "credible_path"), shape, images.dtype).sort(dim=2).values
        try:
            alphas = self.alphas.tensor.to(images).expand(len(images), *shape)
        except RuntimeError as error:
            got = f"shape {tuple(self.alphas.tensor.shape)}"
            raise validation.fail("alphas", f"a shape that expands to {(len(images), *shape)}", got) from error
        if float(alphas.min()) < 0 or float(alphas.max()) > 1:
            raise validation.fail("alphas", "values in [0, 1]", f"[{float(alphas.min())}, {float(alphas.max())}]")
        return alphas.sort(dim=2).values

    def _search(self, classifier: Classifier, images: Tensor, target: Tensor, goal: Tensor, start: Tensor) -> _Search:
        """Find a baseline for each image (algorithm 1); finished images are left out of further passes."""
        shape = (-1, 1, 1, 1)
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
            if self.variant == "sound":
                size[rows] = torch.where(better, size[rows], size[rows] / 2)
            distance[rows] = torch.where(better, now, distance[rows])
            best[rows] = torch.where(better.reshape(shape), point, best[rows])
            best_logits[rows] = torch.where(better[:, None], logits.to(goal), best_logits[rows])
            kept = (distance[rows] > limit[rows]).nonzero()[:, 0]
            if len(kept) == 0:
                break
            rows, point, gradient = rows[kept], point[kept], gradient[kept]
            moved = point - size[rows].to(point).reshape(shape) * gradient.sign().to(point.dtype)
            point = self._apart(moved, images[rows], classifier.bounds)
        return _Search(best, best_logits, (distance <= limit) & distance.isfinite(), passes)

    def _descent(self, classifier: Classifier, point: Tensor, target: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the gradient of what the search makes small."""
        if self.objective == "cross_entropy" or self.variant == "authors":
            return classifier.loss_gradient(point, target)
        return classifier.gradient_of(
            lambda logits, at: F.mse_loss(logits, at.to(logits), reduction="sum") / 2, point, goal
        )

    def _apart(self, point: Tensor, images: Tensor, bounds: tuple[float, float]) -> Tensor:
        """Return points in bounds whose pixels keep the gap to the images' (lines 4 to 7 of algorithm 1)."""
        if self.variant == "authors":
            close = (images - point).abs() < self.gap
            return torch.where(close, point - (images - point).sign() * self.gap, point).clamp(*bounds)
        point = point.clamp(*bounds)
        close = (images - point).abs() < self.gap
        gap = torch.full_like(point, self.gap)
        side = torch.where(point < images, -gap, gap)
        away = point + side
        outside = (away < bounds[0]) | (away > bounds[1])
        return torch.where(close, torch.where(outside, images - side, away), point)

    def _path(self, line: Line, reference: Tensor, points: Tensor, search: _Search) -> Path:
        total, count = torch.zeros_like(line.images), torch.zeros_like(line.images)
        curve = torch.empty_like(points)
        for block in line.gradients(points):
            at_image, along = reference[block.rows, None], block.gradients
            if self.variant == "authors":
                left = (1 - points[block.rows, block.columns])[..., None, None, None]
                along = along * left * block.way
            smaller, larger = (at_image.abs(), along.abs()) if self.reverse else (along.abs(), at_image.abs())
            fits = smaller < larger if self.variant == "authors" else smaller <= (1 + _SLACK) * larger
            counts = (along.sign() == at_image.sign()) & fits
            total[block.rows] += (block.gradients * counts).sum(1)
            count[block.rows] += counts.sum(1)
            curve[block.rows, block.columns] = block.scores
        divisor = count.clamp(min=1) if self.divisor == "count" else points.shape[1]
        return Path.of(
            line,
            (line.images - line.base) * total / divisor,
            curve,
            converged=search.found,
            forwards=search.passes,
            backwards=search.passes,
            valid=count.flatten(1).mean(1) / points.shape[1],
        )
