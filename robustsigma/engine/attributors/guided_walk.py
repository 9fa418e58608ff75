"""Walks led by one gradient and attributed by another: what IG2 and AGI have in common."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robustsigma.engine.attributors.base import Attribution, shares
from robustsigma.engine.chunks import split_sizes
from robustsigma.engine.classifier import Classifier, Score, target_score

# Rows walked at once, in chunks of the classifier.
_CHUNKS_PER_GROUP = 2

_PER_IMAGE = (-1, 1, 1, 1)


class Guide(Protocol):
    """Leads rows of a walk; `rows` (N,) says which row each of the points (N, C, H, W) belongs to.

    What it sees of a point, `seen` (N, K + ...), begins with the point's logits.
    """

    classifier: Classifier  # that sees

    def leading(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Return the score (N,) that the walk climbs."""

    def look(self, seen: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction (N, C, H, W), from that score's gradient, and whether the row's path ends here, (N,)."""

    def glance(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Return whether the row has arrived, (N,), where its steps are used up."""

    def advance(self, points: Tensor, direction: Tensor, rows: Tensor) -> Tensor:
        """Return the next points, in range."""


class GuidedWalk:
    """Paths of B images x P, of which `used` (B, P) are walked: values = sum over steps of (u_k - u_{k+1}) dF(u_k).

    So they sum to F(image) - F(end) up to the error of a Riemann sum. A path that is not walked has NaN confidence,
    no steps and the image as its end.

    Args:
        images: (B, C, H, W).
        target: (B,).
        logits: (B, K) of the images.
        used: (B, P) bool.
        score: F.
        from_image: take each step's whole distance from the image instead, as AGI's code does.
    """

    def __init__(
        self,
        images: Tensor,
        target: Tensor,
        logits: Tensor,
        used: Tensor,
        score: Score,
        *,
        from_image: bool = False,
    ) -> None:
        paths = used.shape[1]
        self.score, self.used, self.from_image = score, used, from_image
        self.images, self.targets, self.classes = images, target, logits.shape[1]
        self.start = target_score(logits, target, score).to(images.dtype)
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
        if len(rows) == 0:
            return
        self.curve[rows, 0] = self.start[self.image_of[rows]]
        most = _CHUNKS_PER_GROUP * guide.classifier.chunk_for(self.images)
        for group in rows.split(split_sizes(len(rows), most)):
            self._run(guide, group, steps)

    def _run(self, guide: Guide, rows: Tensor, steps: int) -> None:
        for step in range(steps):
            points = self.ends[rows]
            # Where a path ends is known only now, so that its end's gradient of F, which nothing needs, is made too.
            seen, lead, gradient = guide.classifier.gradients_of(
                (lambda z, at: guide.leading(z, at).sum(), lambda z, at: self._scores(z, at).sum()), points, rows
            )
            direction, ended = guide.look(seen, lead.to(points.dtype), rows)
            self._note(rows, step, seen)
            self.backwards[rows] += 2
            self.arrived[rows] = ended
            # Asked at every step: on a GPU it waits for the device, which costs less than passes of paths that ended.
            kept = (~ended).nonzero()[:, 0]
            if len(kept) == 0:
                return
            if len(kept) < len(rows):
                rows, points, direction, gradient = (t[kept] for t in (rows, points, direction, gradient))
            self._step(rows, points, guide.advance(points, direction, rows), gradient)
        seen = guide.classifier.logits(self.ends[rows])
        self._note(rows, steps, seen)
        self.arrived[rows] = guide.glance(seen, rows)

    def _step(self, rows: Tensor, points: Tensor, new: Tensor, gradient: Tensor) -> None:
        """Move to `new` and add the gradient of F at `points` times the way there."""
        way = (self.images[self.image_of[rows]] if self.from_image else points) - new
        self.values.index_add_(0, rows, gradient.to(way.dtype) * way)
        self.ends[rows] = new
        self.steps[rows] += 1

    def _scores(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Return F (N,) of what was seen of rows' points."""
        return target_score(seen[:, : self.classes], self.targets[self.image_of[rows]], self.score)

    def _note(self, rows: Tensor, step: int, seen: Tensor) -> None:
        """Write down F at the points of the rows that just stepped there, and the pass it took."""
        self.forwards[rows] += 1
        if step > 0:
            self.curve[rows, step] = self._scores(seen, rows).to(self.curve.dtype)

    def attribution(self, converged: Tensor, *, shared: int = 0, total: bool = False) -> Attribution:
        """Return the mean, or the `total`, over used paths, in values, drop and standard error alike.

        The batch spent `shared` forward passes beside the walk.

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
        of_mean = (off.square().sum(1) / ((count - 1).clamp(min=1) * count).reshape(-1, 1, 1)).sqrt()
        stderr = of_mean * (count / divisor).to(of_mean.dtype).reshape(-1, 1, 1)
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
