"""Fast adaptive boundary attack, which looks for the nearest misclassified image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.attack_state import AttackState, keep
from robustsigma.engine.perturbations.ball import Ball, check_radius
from robustsigma.engine.perturbations.in_parts import AttackCost, AttackInParts, by_rank
from robustsigma.engine.perturbations.projections import DUAL, Norm, lengths, onto_hyperplane


@dataclass
class _Walk:
    """The walks of the images that are left, a row each."""

    at: Tensor  # places in the whole batch
    clean: Tensor
    labels: Tensor
    target: Tensor
    eps: Tensor  # (n, 1, 1, 1)
    point: Tensor


@dataclass(frozen=True)
class FAB(AttackInParts):
    """Fast adaptive boundary attack (Croce and Hein, 2020), by default its targeted form FAB-T.

    Each step goes to the decision boundary of the linearized network, from the current point and from the clean image,
    and combines the two. From misclassified points it steps back towards the clean image. An image is misled by a
    point within `eps`, and leaves. Images that withstand the attack or are misclassified stay as they are.

    Args:
        eps: radius in pixel units of [0, 1]; None returns the nearest misclassified image that was found.
        norm: "linf", "l2" or "l1".
        steps: number of steps, each two forward passes and one backward pass.
        restarts: number of starts of each target; those after the first are random.
        targets: number of classes that are aimed at one after another, those of the highest logits; at most all others.
        targeted: whether to aim at one class at a time. Otherwise each step goes to the nearest boundary of any class
            and costs a backward pass for each class.
        alpha_max: largest weight of the clean image's step.
        eta: step beyond the boundary, at least 1.
        beta: fraction of the way that a misclassified point keeps.

    Example:
        >>> nearest = FAB(norm="l2")(classifier, images, labels, seed=0, return_info=True)
        >>> nearest.median_distance()
    """

    eps: float | None = None
    norm: Norm = "linf"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    targeted: bool = True
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        if self.eps is not None:
            check_radius(self.eps, self.norm)
        for name in ("steps", "restarts", "targets"):
            validation.integer(name, getattr(self, name), 1)
        if self.eps is None and self.restarts > 1:
            raise validation.fail("restarts", "1 without eps, the size of random starts", self.restarts)
        validation.number("alpha_max", self.alpha_max, 0, 1)
        validation.number("eta", self.eta, 1)
        validation.number("beta", self.beta, 0, 1)

    def parts(self, classes: int) -> int:
        """Return the number of walks."""
        return self.restarts * (min(self.targets, classes - 1) if self.targeted else 1)

    def cost(self, classes: int) -> AttackCost:
        """Return the most passes for an image."""
        steps = self.parts(classes) * self.steps
        return AttackCost(1 + 2 * steps, steps * (1 if self.targeted else classes - 1))

    def rows(self, state: AttackState) -> Tensor:
        """Return the rows of the images that a walk attacks: without a radius, all that were classified right."""
        return state.left() if self.eps is not None else (state.found_by != 0).nonzero()[:, 0]

    def run(self, part: int, classifier: Classifier, state: AttackState) -> None:
        """Run one walk."""
        rows = self.rows(state)
        labels, clean, eps = state.labels[rows], state.images[rows], state.eps[rows]
        rank, restart = (part // self.restarts, part % self.restarts) if self.targeted else (0, part)
        target = by_rank(state.logits[rows], labels, rank)
        point = clean
        if restart:
            keys = noise.fold(state.seeds[rows], f"fab {self.targeted}", part)
            point = Ball(clean, eps, self.norm, classifier.bounds).start_at_surface(keys)
            point = clean + (point - clean) / 2
        walk = _Walk(rows, clean, labels, target, eps, point)
        for _ in state.steps(self.steps):
            walk.point = self._next(classifier, walk, state)
            logits = classifier.logits(walk.point)
            self.check(logits)
            wrong = logits.argmax(1) != walk.labels
            if not bool(wrong.any()):
                continue
            change = walk.point - walk.clean
            distance = lengths(change, self.norm)
            inside = wrong & (distance <= walk.eps.flatten())
            walk.point = torch.where(wrong.view(-1, 1, 1, 1), walk.clean + self.beta * change, walk.point)
            if self.eps is None:
                nearer = inside & (-distance > state.losses[walk.at])  # of a nearest point, the negative distance
                at, found = walk.at[nearer], (walk.clean + change)[nearer]
                state.mislead(at, found)
                state.losses[at] = -distance[nearer].to(state.losses.dtype)
            elif bool(inside.any()):
                state.mislead(walk.at[inside], (walk.clean + change)[inside])
                walk = keep(walk, (~inside).nonzero()[:, 0])
                if not len(walk.at):
                    break

    def _next(self, classifier: Classifier, walk: _Walk, state: AttackState) -> Tensor:
        difference, gradient = self._boundary(classifier, walk, state)
        weights, point, clean = gradient.flatten(1), walk.point.flatten(1), walk.clean.flatten(1)
        offset = (weights * point).sum(1) - difference
        steps = onto_hyperplane(torch.cat([point, clean]), weights.repeat(2, 1), offset.repeat(2), self.norm)
        step, clean_step = steps.chunk(2)
        length, clean_length = lengths(steps, self.norm).clamp(min=1e-8)[:, None].chunk(2)
        share = (length / (length + clean_length)).clamp(max=self.alpha_max)
        combined = (point + self.eta * step) * (1 - share) + (clean + self.eta * clean_step) * share
        return combined.view_as(walk.point).clamp(*classifier.bounds)

    def _boundary(self, classifier: Classifier, walk: _Walk, state: AttackState) -> tuple[Tensor, Tensor]:
        """Return the target's logit minus the label's, (n,), and its gradient; of the nearest target if none is set."""
        if self.targeted:
            goal = torch.stack([walk.labels, walk.target], 1)
            logits, gradient = classifier.gradient_of(_difference, walk.point, goal)
            state.count(walk.at, 2, 1)
            self.check(logits, gradient)
            both = logits.gather(1, goal)
            return both[:, 1] - both[:, 0], gradient
        classes = state.logits.shape[1]

        def objective(rank: int) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda z, y: _difference(z, torch.stack([y, (y + rank) % classes], 1))

        logits, *gradients = classifier.gradients_of(
            [objective(rank) for rank in range(1, classes)], walk.point, walk.labels
        )
        state.count(walk.at, 2, classes - 1)
        self.check(logits, *gradients)
        ranks = torch.arange(1, classes, device=logits.device)
        others = logits.gather(1, (walk.labels[:, None] + ranks) % classes) - logits.gather(1, walk.labels[:, None])
        slopes = torch.stack([lengths(gradient, DUAL[self.norm]) for gradient in gradients], 1)
        nearest = (others.abs() / slopes.clamp(min=1e-12)).argmin(1)
        every = torch.arange(len(nearest), device=nearest.device)
        return others[every, nearest], torch.stack(gradients, 1)[every, nearest]


def _difference(logits: Tensor, goal: Tensor) -> Tensor:
    """Return the sum of the targets' logits minus those of the labels."""
    both = logits.gather(1, goal)
    return (both[:, 1] - both[:, 0]).sum()
