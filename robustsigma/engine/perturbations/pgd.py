"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier, target_score
from robustsigma.engine.perturbations.ball import Ball, Norm, check_radius
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, drawn

Targeted = Literal["random", "least_likely", "second"]


@dataclass(frozen=True)
class PGD(Perturbation):
    """Projected gradient descent in a ball around the image (Madry et al., 2018).

    Each step follows the gradient's sign ("linf") or the gradient of length 1 ("l2") and is projected onto the ball,
    then clipped to the pixel bounds.

    Args:
        eps: radius in pixel units of [0, 1]: the largest change of a pixel for "linf", the Euclidean length of the
            whole change for "l2".
        step_size: of each step; None takes 2.5 eps / steps.
        steps: forward and backward passes of a restart.
        random_start: start at a uniform point of the ball.
        restarts: independent starts. Each image keeps its worst result: a misclassified one first, then the one of
            the highest loss of its label. An image that is misclassified is not attacked again. More than one costs
            one forward pass a restart besides, and needs a random start.
        norm: "linf" or "l2".
        targeted: None raises the loss of the label. Otherwise the loss of another class is lowered: one drawn by the
            image's seed, anew in each restart ("random"), the class of the lowest logit of the clean image
            ("least_likely") or the class of the highest ("second"), the label left out. One forward pass more.
    """

    eps: float = 8 / 255
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    restarts: int = 1
    norm: Norm = "linf"
    targeted: Targeted | None = None

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        validation.integer("steps", self.steps, 1)
        if self.step_size is not None:
            validation.number("step_size", self.step_size, 0, open_low=True)
        validation.integer("restarts", self.restarts, 1)
        if self.restarts > 1 and not self.random_start:
            raise validation.fail("restarts", "1 without random_start, since all would be the same", self.restarts)
        if self.targeted is not None:
            validation.choice("targeted", self.targeted, get_args(Targeted))

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images."""
        clean = None if self.targeted is None else classifier.logits(x)
        worst = self._walk(classifier, x, y, seeds, clean)
        if self.restarts == 1:
            return Perturbed.plain(worst)
        wrong, loss = self._outcome(classifier, worst, y)
        for restart in range(1, self.restarts):
            rows = (~wrong).nonzero()[:, 0]
            if len(rows) == 0:
                break
            keys = noise.fold(seeds[rows], "restart", restart)
            found = self._walk(classifier, x[rows], y[rows], keys, None if clean is None else clean[rows])
            found_wrong, found_loss = self._outcome(classifier, found, y[rows])
            better = found_wrong | (found_loss > loss[rows])
            at = rows[better]
            worst[at], wrong[at], loss[at] = found[better], found_wrong[better], found_loss[better]
        return Perturbed.plain(worst)

    def _walk(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor, clean: Tensor | None) -> Tensor:
        """Return the end of one restart, (B, C, H, W); `clean` are the logits to choose the target by, or None."""
        ball = Ball(x, self.eps, self.norm, classifier.bounds)
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        goal, up = (y, size) if clean is None else (self._targets(clean, y, seeds), -size)
        point = ball.start(seeds) if self.random_start else x
        for _ in range(self.steps):
            _, gradient = classifier.loss_gradient(point, goal)
            point = ball.project(point + ball.step(gradient, up))
        return point

    def _outcome(self, classifier: Classifier, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return which images are misclassified, bool (B,), and the loss of their label, (B,)."""
        logits = classifier.logits(images)
        if torch.isnan(logits).any():
            raise validation.not_finite("gradients or scores", self)
        return logits.argmax(1) != y, -target_score(logits, y, "log_prob")

    def _targets(self, logits: Tensor, y: Tensor, seeds: Tensor) -> Tensor:
        """Return a class other than the label for each image, int64 (B,)."""
        if self.targeted == "random":
            others = logits.shape[1] - 1
            at = (drawn(seeds, "target") * others).long().clamp(max=others - 1)
            return at + (at >= y)
        lowest = self.targeted == "least_likely"
        hidden = logits.scatter(1, y[:, None], torch.inf if lowest else -torch.inf)
        return hidden.argmin(1) if lowest else hidden.argmax(1)
