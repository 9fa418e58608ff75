"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Ball, check_radius
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, uniform_draw
from robustsigma.engine.perturbations.in_parts import by_rank
from robustsigma.engine.scores import target_score

Targeted = Literal["random", "least_likely", "second"]
Objective = Literal["ce", "kl"]
_START = 0.001  # standard deviation of the start of "kl"


@dataclass(frozen=True)
class PGD(Perturbation):
    """Projected gradient descent in a ball around the image (Madry et al., 2018).

    Each step follows the gradient's sign ("linf") or the gradient of length 1 ("l2"), is projected onto the ball and
    clipped to the pixel bounds.

    Args:
        eps: radius in pixel units of [0, 1]: the largest change of a pixel for "linf", the Euclidean length of the
            whole change for "l2".
        step_size: size of each step in the same units; None uses 2.5 eps / steps, and eps / 4 with "kl".
        steps: number of steps of a restart, each one forward and one backward pass.
        random_start: start at a uniform point of the ball; with "kl" at Gaussian noise of standard deviation 0.001.
        restarts: number of independent starts. Each image keeps its worst result: a misclassified one first, then the
            one of the highest loss. A misclassified image is not attacked again. Values above 1 need a random start
            and cost one more forward pass for each restart.
        norm: "linf" or "l2".
        targeted: None raises the loss of the label. Otherwise the loss of another class is lowered: one drawn anew by
            the image's seed in each restart ("random"), or the class other than the label with the lowest
            ("least_likely") or highest ("second") logit of the clean image, with one more forward pass; or the class of
            this index. Images of that class stay as they are. The argument `target` of a call takes a class for each
            image.
        objective: "ce" raises the cross-entropy, "kl" the divergence of the prediction from that of the clean image
            whatever the label, as TRADES trains (Zhang et al., 2019).
        eot: number of passes whose gradients are averaged, for networks with random outputs.

    Example:
        >>> adversarial = PGD(8 / 255, steps=20, restarts=5)(classifier, images, labels, seed=0)
    """

    eps: float = 8 / 255
    step_size: float | None = None
    steps: int = 10
    random_start: bool = True
    restarts: int = 1
    norm: Literal["linf", "l2"] = "linf"
    targeted: Targeted | int | None = None
    objective: Objective = "ce"
    eot: int = 1

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        validation.integer("steps", self.steps, 1)
        if self.step_size is not None:
            validation.number("step_size", self.step_size, 0, open_low=True)
        validation.integer("restarts", self.restarts, 1)
        if self.restarts > 1 and not self.random_start:
            raise validation.fail("restarts", "1 without random_start, since all would be the same", self.restarts)
        if self.targeted is not None:
            if isinstance(self.targeted, int) and not isinstance(self.targeted, bool):
                validation.integer("targeted", self.targeted, 0)
            else:
                validation.choice("targeted", self.targeted, get_args(Targeted))
        validation.integer("eot", self.eot, 1)
        if self.objective == "kl" and (self.targeted is not None or self.restarts > 1):
            raise validation.fail("objective", "'ce' with a target or restarts", repr(self.objective))

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return attacked images."""
        eps: Any = self.eps  # a number, or in one call (B, 1, 1, 1); so a target may be (B,)
        radii = torch.as_tensor(eps, dtype=images.dtype, device=images.device).expand(len(images), 1, 1, 1)
        named = isinstance(self.targeted, str)
        clean = classifier.logits(images) if named or self.objective == "kl" else None
        goals = labels if self.targeted is None or named else torch.as_tensor(self.targeted, device=images.device)
        goals = goals.expand(len(images))
        classifier.check_target(goals, images, "targeted")
        every = torch.arange(len(images), device=images.device)

        def walk(rows: Tensor, keys: Tensor) -> Tensor:
            """Return the ends of one restart."""
            goal = goals[rows]
            if clean is not None:
                logits = clean[rows]
                goal = self._targets(logits, goal, keys) if named else logits.softmax(1)
            return self._walk(classifier, images[rows], labels[rows], keys, radii[rows], goal)

        worst = walk(every, seeds)
        if self.restarts == 1:
            return Perturbed.plain(worst)
        wrong, loss = self._outcome(classifier, worst, labels)
        for restart in range(1, self.restarts):
            rows = (~wrong).nonzero()[:, 0]
            if len(rows) == 0:
                break
            found = walk(rows, noise.fold(seeds[rows], "restart", restart))
            found_wrong, found_loss = self._outcome(classifier, found, labels[rows])
            better = found_wrong | (found_loss > loss[rows])
            at = rows[better]
            worst[at], wrong[at], loss[at] = found[better], found_wrong[better], found_loss[better]
        return Perturbed.plain(worst)

    def _walk(
        self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor, eps: Tensor, goal: Tensor
    ) -> Tensor:
        """Return the end of one restart, (B, C, H, W); `goal` is the class, or with "kl" the clean probabilities."""
        ball = Ball(images, eps, self.norm, classifier.bounds)
        point = images
        if self.objective == "kl":
            size = eps / 4 if self.step_size is None else self.step_size
            if self.random_start:
                drawn = noise.gaussian(noise.fold(seeds, "start"), tuple(images.shape[1:]), images.dtype)
                point = ball.project(images + _START * drawn)
            loss = _divergence
        else:
            size = 2.5 * eps / self.steps if self.step_size is None else self.step_size
            point = ball.start(seeds) if self.random_start else images
            loss = partial(F.cross_entropy, reduction="none")
        up = size if self.targeted is None else -size
        for _ in range(self.steps):
            _, gradient = classifier.gradient_of(loss, point, goal, self.eot)
            point = ball.project(point + ball.step(gradient, up))
        if self.targeted is None:
            return point
        return torch.where((goal == labels).view(-1, 1, 1, 1), images, point)

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
        return by_rank(logits if self.targeted == "second" else -logits, labels, 0)


def _divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """Return the divergence of predictions from clean probabilities, (n,)."""
    return F.kl_div(logits.log_softmax(1), clean, reduction="none").sum(1)
