"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Ball, Norm, check_radius
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, uniform_draw
from robustsigma.engine.scores import target_score

Targeted = Literal["random", "least_likely", "second"]


@dataclass(frozen=True)
class PGD(Perturbation):
    """Projected gradient descent in a ball around the image (Madry et al., 2018).

    Each step follows the gradient's sign ("linf") or the gradient of length 1 ("l2"), is projected onto the ball and
    clipped to the pixel bounds.

    Args:
        eps: radius in pixel units of [0, 1]: the largest change of a pixel for "linf", the Euclidean length of the
            whole change for "l2".
        step_size: size of each step in the same units; None uses 2.5 eps / steps.
        steps: number of steps of a restart, each one forward and one backward pass.
        random_start: start at a uniform point of the ball.
        restarts: number of independent starts. Each image keeps its worst result: a misclassified one first, then the
            one of the highest loss. A misclassified image is not attacked again. Values above 1 need a random start
            and cost one more forward pass for each restart.
        norm: "linf" or "l2".
        targeted: None raises the loss of the label. Otherwise the loss of another class is lowered: one drawn anew by
            the image's seed in each restart ("random"), or the class other than the label with the lowest
            ("least_likely") or highest ("second") logit of the clean image. One more forward pass.

    Example:
        >>> adversarial = PGD(8 / 255, steps=20, restarts=5)(classifier, images, labels, seed=0)
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

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images."""
        clean = None if self.targeted is None else classifier.logits(images)
        worst = self._walk(classifier, images, labels, seeds, clean)
        if self.restarts == 1:
            return Perturbed.plain(worst)
        wrong, loss = self._outcome(classifier, worst, labels)
        for restart in range(1, self.restarts):
            rows = (~wrong).nonzero()[:, 0]
            if len(rows) == 0:
                break
            keys = noise.fold(seeds[rows], "restart", restart)
            found = self._walk(classifier, images[rows], labels[rows], keys, None if clean is None else clean[rows])
            found_wrong, found_loss = self._outcome(classifier, found, labels[rows])
            better = found_wrong | (found_loss > loss[rows])
            at = rows[better]
            worst[at], wrong[at], loss[at] = found[better], found_wrong[better], found_loss[better]
        return Perturbed.plain(worst)

    def _walk(
        self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor, clean: Tensor | None
    ) -> Tensor:
        """Return the end of one restart, (B, C, H, W); `clean` are the logits that choose the target, or None."""
        ball = Ball(images, self.eps, self.norm, classifier.bounds)
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        goal, up = (labels, size) if clean is None else (self._targets(clean, labels, seeds), -size)
        point = ball.start(seeds) if self.random_start else images
        for _ in range(self.steps):
            _, gradient = classifier.loss_gradient(point, goal)
            point = ball.project(point + ball.step(gradient, up))
        return point

    def _outcome(self, classifier: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return which images are misclassified, bool (B,), and the loss of their label, (B,)."""
        logits = classifier.logits(images)
        if torch.isnan(logits).any():
            raise validation.not_finite("gradients or scores", self)
        return logits.argmax(1) != labels, -target_score(logits, labels, "log_prob")

    def _targets(self, logits: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        """Return a class other than the label for each image, int64 (B,)."""
        if self.targeted == "random":
            others = logits.shape[1] - 1
            at = (uniform_draw(seeds, "target") * others).long().clamp(max=others - 1)
            return at + (at >= labels)
        lowest = self.targeted == "least_likely"
        hidden = logits.scatter(1, labels[:, None], torch.inf if lowest else -torch.inf)
        return hidden.argmin(1) if lowest else hidden.argmax(1)
