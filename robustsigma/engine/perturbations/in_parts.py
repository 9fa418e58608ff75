"""Base class of attacks in parts (restarts, target classes); an image leaves once it misleads the network."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.attack_state import AttackState
from robustsigma.engine.perturbations.base import Perturbation, Perturbed


class AttackCost(NamedTuple):
    """The most passes that an attack needs for an image: for one that withstands all of it.

    Attributes:
        forwards: passes, those of gradients included.
        backwards: passes.

    Example:
        >>> AutoAttack(8 / 255).cost(classes=10)
        AttackCost(forwards=7811, backwards=1900)
    """

    forwards: int
    backwards: int

    def minutes(self, classifier: Classifier, images: Tensor, count: int) -> float:
        """Return how long `count` images take at most, from timed passes of a batch; it runs two of each kind."""
        seconds = []
        with classifier.frozen():
            x = classifier.prepare_input(images)
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            for run in (lambda: classifier.logits(x), lambda: classifier.loss_gradient(x, labels)[1]):
                run().sum().item()  # the first pass of a kind may be slower; `item` waits for the device
                start = time.perf_counter()
                run().sum().item()
                seconds.append(time.perf_counter() - start)
        forward, both = seconds
        each = (self.forwards - self.backwards) * forward + self.backwards * both
        return each * count / len(images) / 60


class AttackInParts(Perturbation):
    """An attack in parts; misclassified images are left as they are, and leave it.

    Example:
        >>> isinstance(AutoAttack(8 / 255), AttackInParts)
        True
    """

    in_parts = True

    @abstractmethod
    def parts(self, classes: int) -> int:
        """Return the number of parts against a network of so many classes."""

    @abstractmethod
    def run(self, part: int, classifier: Classifier, state: AttackState) -> None:
        """Run one part on the images that are left, and record what it finds."""

    @abstractmethod
    def cost(self, classes: int) -> AttackCost:
        """Return the most passes for an image, the pass of the clean image included."""

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return, for each image, what misled the network, else the strongest point of the first loss."""
        state: AttackState = getattr(self, "_state", None) or AttackState()
        radius: Any = getattr(self, "eps", None)
        eps = torch.as_tensor(torch.inf if radius is None else radius, dtype=images.dtype, device=images.device)
        logits = classifier.logits(images)
        self.check(logits)
        state.begin(self, images, labels, seeds, eps.expand(len(images), 1, 1, 1), logits)
        state.parts = self.parts(logits.shape[1])
        for part in range(state.part, state.parts):
            if len(self.rows(state)):
                self.run(part, classifier, state)
            state.finish(part)
        return replace(
            Perturbed.plain(state.found),
            forwards=state.forwards,
            backwards=state.backwards,
            found_by=state.found_by,
            zero_gradient=state.zero_gradient,
        )

    def rows(self, state: AttackState) -> Tensor:
        """Return the rows of the images that a part attacks, int64."""
        return state.left()

    def check(self, *values: Tensor) -> None:
        """Raise where logits or gradients are not numbers."""
        if any(bool(value.isnan().any()) for value in values):
            raise validation.not_finite("gradients or scores", self)


def by_rank(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Return the class of the highest logit beside the label's for rank 0, the next for rank 1, …; int64 (B,)."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(rank + 1, dim=1).indices[:, rank]
