"""Auto-PGD, projected gradient descent that chooses its own step sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.attack_state import AttackState, keep
from robustsigma.engine.perturbations.ball import Ball, check_radius
from robustsigma.engine.perturbations.in_parts import AttackCost, AttackInParts, by_rank
from robustsigma.engine.perturbations.losses import Loss, attack_loss
from robustsigma.engine.perturbations.projections import Norm

_WIDE = ((3, 0.3), (2, 0.3), (1, 0.4))  # radius in units of eps, and fraction of the steps


@dataclass
class _Walk:
    """The walks of the images that are left, a row each."""

    at: Tensor  # places in the whole batch
    clean: Tensor
    goal: Tensor  # (n, 2) labels and targets
    eps: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    best_before: Tensor  # best loss at the last checkpoint
    halved: Tensor  # whether the step was halved there
    loss: Tensor
    rises: Tensor  # number of steps since then that raised the loss
    step: Tensor  # (n, 1, 1, 1)
    kept: Tensor  # "l1" alone: fraction of the pixels that a step moves
    moved: Tensor  # "l1" alone: number of pixels that the best point moved, at the last checkpoint


@dataclass(frozen=True)
class APGD(AttackInParts):
    """Auto-PGD (Croce and Hein, 2020; in the L1 norm Croce and Hein, 2021): momentum, and steps that shrink by rule.

    At checkpoints the step is halved, and the walk restarts from its best point, where the loss rose in at most `rho`
    of the steps, or where the best loss stood still at a step that was not halved before. An image leaves as soon as
    it misleads the network; one that never does ends at its point of highest loss. Misclassified images are returned
    as they are.

    Args:
        eps: radius in pixel units of [0, 1].
        norm: "linf", "l2" or "l1".
        loss: "ce", "dlr", "dlr-targeted" or "margin"; see `losses.attack_loss`.
        steps: number of steps of a restart, each one forward and one backward pass.
        restarts: number of random starts; for "dlr-targeted" of each target.
        targets: number of classes that "dlr-targeted" aims at one after another, those of the highest logits; at most
            all others.
        eot: number of passes whose gradients are averaged, for networks with random outputs.
        rho: fraction of rising steps below which a step is halved.
        wide_start: "l1" alone: walk in balls of 3 eps and 2 eps first.

    Example:
        >>> adversarial = APGD(8 / 255, loss="dlr", restarts=5)(classifier, images, labels, seed=0)
    """

    eps: float = 8 / 255
    norm: Norm = "linf"
    loss: Loss = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    eot: int = 1
    rho: float = 0.75
    wide_start: bool = False

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        for name in ("steps", "restarts", "targets", "eot"):
            validation.integer(name, getattr(self, name), 1)
        validation.number("rho", self.rho, 0, 1)
        if self.wide_start and self.norm != "l1":
            raise validation.fail("wide_start", "False for another norm than 'l1'", self.wide_start)

    def parts(self, classes: int) -> int:
        """Return the number of walks."""
        return self.restarts * (min(self.targets, classes - 1) if self.loss == "dlr-targeted" else 1)

    def cost(self, classes: int) -> AttackCost:
        """Return the most passes for an image: the last point of a walk needs no gradient."""
        walks = 3 if self.wide_start else 1
        parts = self.parts(classes)
        return AttackCost(1 + parts * self.eot * (self.steps + walks), parts * self.eot * self.steps)

    def run(self, part: int, classifier: Classifier, state: AttackState) -> None:
        """Run one walk."""
        rows = state.left()
        labels = state.labels[rows]
        aimed = self.loss == "dlr-targeted"
        target = by_rank(state.logits[rows], labels, part // self.restarts) if aimed else labels
        goal = torch.stack([labels, target], 1)
        keys = noise.fold(state.seeds[rows], f"apgd {self.loss}", part)
        clean, eps = state.images[rows], state.eps[rows]
        wide, taken = _WIDE[0][0] if self.wide_start else 1, 0
        start = Ball(clean, wide * eps, self.norm, classifier.bounds).start_at_surface(keys)
        if self.wide_start:
            for factor, fraction in _WIDE[:-1]:
                steps = math.ceil(fraction * self.steps)
                taken += steps
                start = Ball(clean, factor * eps, self.norm, classifier.bounds).project(start)
                start = self._walk(classifier, state, rows, start, goal, factor * eps, steps, leave=False)
            start = Ball(clean, eps, self.norm, classifier.bounds).project(start)
        self._walk(classifier, state, rows, start, goal, eps, max(0, self.steps - taken), leave=True)

    def _walk(
        self,
        classifier: Classifier,
        state: AttackState,
        rows: Tensor,
        start: Tensor,
        goal: Tensor,
        eps: Tensor,
        steps: int,
        *,
        leave: bool,
    ) -> Tensor:
        """Walk from a start, and return the best points of the images that are left at the end."""
        walk = self._begin(state, rows, start, goal, eps)
        interval = max(int((0.04 if self.norm == "l1" else 0.22) * steps), 1)
        since = 0
        for step in state.steps(steps + 1):
            last = step == steps
            if step:
                ball = Ball(walk.clean, walk.eps, self.norm, classifier.bounds)
                walk.previous, walk.point = walk.point, self._next(walk, ball, first=step == 1)
            logits, gradient = self._look(classifier, state, walk, last)
            loss = attack_loss(logits, walk.goal, self.loss)
            wrong = logits.argmax(1) != walk.goal[:, 0]
            if step == 0 and self.loss.startswith("dlr"):
                state.zero_gradient[walk.at] |= gradient.flatten(1).abs().amax(1) == 0
            if leave and bool(wrong.any()):
                state.mislead(walk.at[wrong], walk.point[wrong])
                left = (~wrong).nonzero()[:, 0]
                walk = keep(walk, left)
                loss, gradient = loss[left], gradient[left]
                if not len(left):
                    break
            walk.gradient = gradient
            self._record(walk, loss, first=step == 0)
            since += step > 0
            if since == interval and not last:
                since = 0
                if self.norm == "l1":
                    _choose_pixels(walk)
                else:
                    _choose_steps(walk, interval, self.rho)
                    interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        if leave and len(walk.at):
            state.offer(walk.at, walk.best, walk.best_loss, self.loss)
        return walk.best

    def _begin(self, state: AttackState, rows: Tensor, start: Tensor, goal: Tensor, eps: Tensor) -> _Walk:
        clean = state.images[rows]
        none = clean.new_zeros(len(rows))
        moved = (start != clean).flatten(1).sum(1).to(clean.dtype)
        count = clean[0].numel()
        if not self.wide_start:  # only the start of a walk in a wider ball tells how many pixels count
            moved, kept = none + count, none + 0.2
        else:
            kept = moved / count / 1.5
        step = eps * (1 if self.norm == "l1" else 2)
        low = none - torch.inf
        points = (start,) * 5
        return _Walk(rows, clean, goal, eps, *points, low, low, none.bool(), none, none, step, kept, moved)

    def _look(self, classifier: Classifier, state: AttackState, walk: _Walk, last: bool) -> tuple[Tensor, Tensor]:
        """Return logits and gradient at the walks' points; the last point needs no gradient."""
        state.count(walk.at, self.eot, 0 if last else self.eot)
        if last:
            for _ in range(self.eot):
                logits = classifier.logits(walk.point)
            self.check(logits)
            return logits, walk.gradient
        logits, gradient = classifier.gradient_of(partial(attack_loss, loss=self.loss), walk.point, walk.goal, self.eot)
        self.check(logits, gradient)
        return logits, gradient

    def _next(self, walk: _Walk, ball: Ball, *, first: bool) -> Tensor:
        """Return the next points: a step of ascent and, after the first, momentum."""
        if self.norm == "l1":
            return ball.project(walk.point + walk.step * _sparse_direction(walk.gradient, walk.kept))
        stepped = ball.project(walk.point + ball.step(walk.gradient, walk.step))
        if first:
            return stepped
        return ball.project(walk.point + 0.75 * (stepped - walk.point) + 0.25 * (walk.point - walk.previous))

    def _record(self, walk: _Walk, loss: Tensor, *, first: bool) -> None:
        """Keep the best points, and count the steps that raised the loss."""
        if not first:
            # The reference compares the first step with a loss of 0, and so do published results.
            walk.rises = walk.rises + (loss > walk.loss)
            walk.loss = loss
        better = loss > walk.best_loss
        at = better.view(-1, 1, 1, 1)
        walk.best = torch.where(at, walk.point, walk.best)
        walk.best_gradient = torch.where(at, walk.gradient, walk.best_gradient)
        walk.best_loss = torch.where(better, loss, walk.best_loss)
        if first:
            walk.best_before, walk.halved = walk.best_loss, torch.ones_like(walk.halved)


def _choose_steps(walk: _Walk, interval: int, rho: float) -> None:
    """Halve the steps that no longer help, and continue these walks at their best points."""
    halve = (walk.rises <= rho * interval) | (~walk.halved & (walk.best_before >= walk.best_loss))
    walk.halved, walk.best_before, walk.rises = halve, walk.best_loss, torch.zeros_like(walk.rises)
    _go_back(walk, halve)
    walk.step = torch.where(halve.view(-1, 1, 1, 1), walk.step / 2, walk.step)


def _choose_pixels(walk: _Walk) -> None:
    """Choose how many pixels a step moves by how many the best point moved; fewer of them make the step long again."""
    moved = (walk.best != walk.clean).flatten(1).sum(1).to(walk.best.dtype)
    fewer = moved / walk.moved < 0.95
    walk.kept, walk.moved = moved / walk.clean[0].numel() / 1.5, moved
    step = torch.where(fewer.view(-1, 1, 1, 1), walk.eps, walk.step / 1.5)
    walk.step = torch.minimum(torch.maximum(step, walk.eps / 10), walk.eps)
    _go_back(walk, fewer)


def _go_back(walk: _Walk, chosen: Tensor) -> None:
    at = chosen.view(-1, 1, 1, 1)
    walk.point = torch.where(at, walk.best, walk.point)
    walk.gradient = torch.where(at, walk.best_gradient, walk.gradient)


def _sparse_direction(gradient: Tensor, kept: Tensor) -> Tensor:
    """Return the signs of the largest gradients, a fraction `kept` of each image, of length 1 in the L1 norm."""
    flat = gradient.flatten(1)
    size, count = flat.abs(), flat.shape[1]
    place = ((1 - kept) * count).clamp(0, count - 1).long()[:, None]
    signs = torch.where(size >= size.sort(1).values.gather(1, place), flat, 0.0).sign()
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)
