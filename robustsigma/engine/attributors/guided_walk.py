"""Walks that follow the gradient of one score and integrate that of another: the common part of IG2 and AGI."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robustsigma.engine.attributors.base import Attribution, split_passes
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_pass import split_sizes
from robustsigma.engine.scores import Score, target_score

_CHUNKS_PER_GROUP = 2  # rows walked at once, in chunks of the classifier
_PER_IMAGE = (-1, 1, 1, 1)


class Guide(Protocol):
    """Decides where the rows of a walk go; `rows` (N,) are the rows of the points (N, C, H, W).

    `outputs` (N, K + ...) are those of `classifier` for the points; they begin with the logits.
    """

    classifier: Classifier

    def guiding_score(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the score (N,) that the walk climbs."""

    def step(self, outputs: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step (N, C, H, W), from that score's gradient, and whether the row's path ends here, (N,)."""

    def is_done(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return whether a row without steps left has converged, (N,)."""


class GuidedWalk:
    """Paths of B images x P, of which `used` (B, P) are walked: values = sum over steps of (u_k - u_{k+1}) dF(u_k).

    They sum to F(image) - F(end) up to the error of a Riemann sum. A path that is not walked has NaN confidence, no
    steps and the image as its end.

    Args:
        images: (B, C, H, W).
        target: (B,).
        logits: (B, K) of the images.
        used: (B, P) bool.
        score: F.
    """

    def __init__(self, images: Tensor, target: Tensor, logits: Tensor, used: Tensor, score: Score) -> None:
        self.score, self.used = score, used
        self.images, self.targets, self.classes = images, target, logits.shape[1]
        self.start = target_score(logits, target, score).to(images.dtype)
        self.image_of = torch.arange(len(images), device=images.device).repeat_interleave(used.shape[1])
        self.ends = images.repeat_interleave(used.shape[1], 0)
        self.values = torch.zeros_like(self.ends)
        self.steps = torch.zeros(len(self.ends), dtype=torch.int64, device=images.device)
        self.forwards, self.backwards = torch.zeros_like(self.steps), torch.zeros_like(self.steps)
        self.done = torch.zeros_like(self.steps, dtype=torch.bool)

    def run(self, guide: Guide, steps: int) -> None:
        """Take at most `steps` steps with every used row, in groups that bound the memory."""
        self.curve = self.start.new_full((len(self.ends), steps + 1), torch.nan)
        rows = self.used.flatten().nonzero()[:, 0]
        if len(rows) == 0:
            return
        self.curve[rows, 0] = self.start[self.image_of[rows]]
        most = _CHUNKS_PER_GROUP * guide.classifier.chunk_size_for(self.images)
        for group in rows.split(split_sizes(len(rows), most)):
            self._walk(guide, group, steps)

    def _walk(self, guide: Guide, rows: Tensor, steps: int) -> None:
        for step in range(steps):
            points = self.ends[rows]
            # Only this pass shows whether a path ends here, so the gradient of F at its end is computed in vain.
            outputs, guiding, gradient = guide.classifier.gradients_of(
                (lambda z, at: guide.guiding_score(z, at).sum(), lambda z, at: self._scores(z, at).sum()), points, rows
            )
            change, ended = guide.step(outputs, guiding.to(points.dtype), rows)
            self._record(rows, step, outputs)
            self.backwards[rows] += 2
            self.done[rows] = ended
            # This waits for a GPU at every step, which costs less than passes for paths that have ended.
            kept = (~ended).nonzero()[:, 0]
            if len(kept) == 0:
                return
            if len(kept) < len(rows):
                rows, points, change, gradient = (t[kept] for t in (rows, points, change, gradient))
            origin = self.origin(rows, points)
            new = (origin + change).clamp(*guide.classifier.bounds)
            self.values.index_add_(0, rows, gradient.to(new.dtype) * (origin - new))
            self.ends[rows] = new
            self.steps[rows] += 1
        outputs = guide.classifier.logits(self.ends[rows])
        self._record(rows, steps, outputs)
        self.done[rows] = guide.is_done(outputs, rows)

    def origin(self, rows: Tensor, points: Tensor) -> Tensor:
        """Return where the steps from points (N, C, H, W) begin."""
        return points

    def _scores(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return F (N,) of the rows' points."""
        return target_score(outputs[:, : self.classes], self.targets[self.image_of[rows]], self.score)

    def _record(self, rows: Tensor, step: int, outputs: Tensor) -> None:
        """Store F of the rows' points, and count the pass."""
        self.forwards[rows] += 1
        if step > 0:
            self.curve[rows, step] = self._scores(outputs, rows).to(self.curve.dtype)

    def attribution(self, converged: Tensor, *, shared: int = 0, total: bool = False) -> Attribution:
        """Return the mean, or the `total`, over used paths: of values, drop and standard error alike.

        The `shared` forward passes, which the images of the batch have in common, are divided among them.
        """
        shape = self.used.shape
        steps = self.steps.unflatten(0, shape)
        curve = self.curve[:, : int(self.steps.max()) + 1].unflatten(0, shape)
        values = self.values.unflatten(0, shape)
        count = self.used.sum(1).clamp(min=1)
        divisor = torch.ones_like(count) if total else count
        drops = self.start[:, None] - curve.gather(2, steps[..., None])[..., 0]
        maps = values.abs().sum(2)
        off = torch.where(self.used[..., None, None], maps - (maps.sum(1) / count.reshape(-1, 1, 1))[:, None], 0)
        of_mean = (off.square().sum(1) / ((count - 1).clamp(min=1) * count).reshape(-1, 1, 1)).sqrt()
        stderr = of_mean * (count / divisor).to(of_mean.dtype).reshape(-1, 1, 1)
        own = self.forwards.unflatten(0, shape).sum(1) + 1  # with the image's first pass
        return Attribution(
            values=values.sum(1) / divisor.reshape(_PER_IMAGE),
            target=self.targets,
            endpoint=self.ends.unflatten(0, shape)[:, 0],
            drop=drops.nansum(1) / divisor,
            confidence=curve,
            steps=steps,
            converged=converged,
            forwards=own + split_passes(shared, len(count), count.device),
            backwards=self.backwards.unflatten(0, shape).sum(1),
            stderr=stderr if shape[1] > 1 else None,
            endpoints=self.ends.unflatten(0, shape),
        )
