"""Walks led by one gradient and attributed by another: what IG2 and AGI have in common."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robustsigma.engine.attributors.base import Attribution, shares
from robustsigma.engine.classifier import Classifier, Score, pick

# Rows walked at once, in chunks of the classifier; on a GPU finished rows leave the batch every few steps.
_CHUNKS_PER_GROUP = 2
_CPU_CHECK_INTERVAL, _GPU_CHECK_INTERVAL = 1, 4

_PER_IMAGE = (-1, 1, 1, 1)


class Guide(Protocol):
    """Leads rows of a walk; `rows` (N,) says which row each of the points (N, C, H, W) belongs to."""

    def look(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, K), the direction (N, C, H, W) and whether the row's path ends here, (N,)."""

    def glance(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K) and whether the row has arrived, (N,), where its steps are used up."""

    def advance(self, points: Tensor, direction: Tensor, rows: Tensor) -> Tensor:
        """Return the next points, in range."""


class GuidedWalk:
    """Paths of B images x P, of which `used` (B, P) are walked: values = sum over steps of (u_k - u_{k+1}) dF(u_k).

    So they sum to F(image) - F(end) up to the error of a Riemann sum. A path that is not walked has NaN confidence,
    no steps and the image as its end.

    Args:
        classifier: frozen.
        images: (B, C, H, W).
        target: (B,).
        start: (B,) F of the images.
        used: (B, P) bool.
        score: F.
        from_image: take each step's whole distance from the image instead, as AGI's code does.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        target: Tensor,
        start: Tensor,
        used: Tensor,
        score: Score,
        *,
        from_image: bool = False,
    ) -> None:
        paths = used.shape[1]
        self.classifier, self.score, self.used, self.from_image = classifier, score, used, from_image
        self.images, self.targets, self.start = images, target, start
        self.image_of = torch.arange(len(images), device=images.device).repeat_interleave(paths)
        self.ends = images.repeat_interleave(paths, 0)
        self.values = torch.zeros_like(self.ends)
        self.steps = torch.zeros(len(self.ends), dtype=torch.int64, device=images.device)
        self.forwards, self.backwards = torch.zeros_like(self.steps), torch.zeros_like(self.steps)
        self.arrived = torch.zeros_like(self.steps, dtype=torch.bool)

    def run(self, guide: Guide, steps: int) -> None:
        """Take at most `steps` steps with every used row, in groups that bound the memory."""
        self.curve = self.start.new_full((len(self.ends), steps + 1), torch.nan)
        rows = self.used.flatten().nonzero()[:, 0]
        self.curve[rows, 0] = self.start[self.image_of[rows]]
        for group in rows.split(_CHUNKS_PER_GROUP * self.classifier.chunk_for(self.images)):
            self._run(guide, group, steps)

    def _run(self, guide: Guide, rows: Tensor, steps: int) -> None:
        interval = _CPU_CHECK_INTERVAL if self.images.device.type == "cpu" else _GPU_CHECK_INTERVAL
        moving = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for step in range(steps):
            points = self.ends[rows]
            logits, direction, ended = guide.look(points, rows)
            self._note(rows, moving, step, logits)
            self.backwards[rows] += moving
            self.arrived[rows] |= moving & ended
            moving = moving & ~ended
            if step % interval == 0:
                kept = moving.nonzero()[:, 0]
                rows, points, direction, moving = (t[kept] for t in (rows, points, direction, moving))
                if len(rows) == 0:
                    return
            self._step(guide, rows, points, direction, moving)
        rows = rows[moving]
        if len(rows) > 0:
            logits, arrived = guide.glance(self.ends[rows], rows)
            self._note(rows, torch.ones_like(arrived), steps, logits)
            self.arrived[rows] |= arrived

    def _step(self, guide: Guide, rows: Tensor, points: Tensor, direction: Tensor, moving: Tensor) -> None:
        image = self.image_of[rows]
        _, gradient = self.classifier.score_and_gradient(points, self.targets[image], self.score)
        walks = moving.reshape(_PER_IMAGE)
        new = torch.where(walks, guide.advance(points, direction, rows), points)
        way = (self.images[image] if self.from_image else points) - new
        self.values.index_add_(0, rows, torch.where(walks, gradient.to(way.dtype) * way, 0))
        self.ends[rows] = new
        for count in (self.steps, self.forwards, self.backwards):
            count[rows] += moving

    def _note(self, rows: Tensor, moving: Tensor, step: int, logits: Tensor) -> None:
        """Write down F at the points of the rows that just stepped there, and the pass it took."""
        self.forwards[rows] += moving
        if step > 0:
            now = pick(logits, self.targets[self.image_of[rows]], self.score).to(self.curve.dtype)
            self.curve[rows, step] = torch.where(moving, now, self.curve[rows, step])

    def attribution(self, converged: Tensor, *, shared: int = 0, total: bool = False) -> Attribution:
        """Return the mean, or the `total`, over used paths; the batch spent `shared` forward passes beside the walk.

        They are counted once, spread over its images; each image's own first pass is counted for it.
        """
        shape = self.used.shape
        steps = self.steps.unflatten(0, shape)
        curve = self.curve[:, : int(self.steps.max()) + 1].unflatten(0, shape)
        values = self.values.unflatten(0, shape)
        count = self.used.sum(1).clamp(min=1)
        divisor = torch.ones_like(count) if total else count
        apart = 1 + shares(shared, len(count), count.device)
        fall = self.start[:, None] - curve.gather(2, steps[..., None])[..., 0]
        maps = values.abs().sum(2)
        off = torch.where(self.used[..., None, None], maps - (maps.sum(1) / count.reshape(-1, 1, 1))[:, None], 0)
        stderr = (off.square().sum(1) / ((count - 1).clamp(min=1) * count).reshape(-1, 1, 1)).sqrt()
        return Attribution(
            values=values.sum(1) / divisor.reshape(_PER_IMAGE),
            target=self.targets,
            endpoint=self.ends.unflatten(0, shape)[:, 0],
            drop=fall.nansum(1) / divisor,
            confidence=curve,
            steps=steps,
            converged=converged,
            forwards=self.forwards.unflatten(0, shape).sum(1) + apart,
            backwards=self.backwards.unflatten(0, shape).sum(1),
            stderr=stderr if shape[1] > 1 else None,
            endpoints=self.ends.unflatten(0, shape),
        )
