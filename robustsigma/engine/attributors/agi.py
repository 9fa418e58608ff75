"""AGI: adversarial gradient integration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.guided_walk import GuidedWalk
from robustsigma.engine.classifier import Classifier, Score, target_score


class _Attack:
    """Leads rows to false classes by steps along the sign of their score's gradient."""

    def __init__(self, classifier: Classifier, false: Tensor, eps: float, score: Score, origin: Tensor | None) -> None:
        self.classifier, self.false, self.eps, self.score, self.origin = classifier, false, eps, score, origin

    def leading(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Return the false class's score."""
        return target_score(seen, self.false[rows], self.score)

    def look(self, seen: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A path ends where its false class is predicted."""
        return gradient.sign(), self.glance(seen, rows)

    def glance(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Tell whether the last step arrived."""
        return seen.argmax(1) == self.false[rows]

    def advance(self, points: Tensor, direction: Tensor, rows: Tensor) -> Tensor:
        """Step by eps from the point, or from the image where `origin` is given, clipped into range."""
        base = points if self.origin is None else self.origin[rows]
        return (base + self.eps * direction).clamp(*self.classifier.bounds)


@dataclass(frozen=True)
class AGI(Attributor):
    """AGI (Pan, Li and Zhu, 2021): from the image, steepest ascent of a false class until it is predicted.

    u_{k+1} = clip(u_k + eps * sgn(grad log p_false(u_k))), values = sum over k of (u_k - u_{k+1}) * grad p_target(u_k),
    mean over false classes: they sum to the drop of p up to the error of a Riemann sum. False classes are the
    result's paths; `converged` tells which of them came to be predicted. A step costs 1 forward pass and 2
    backward passes a class.

    The authors' code differs from the paper: it takes every step from the image, not from where the path stands, and
    counts its whole distance from the image each time, so that values sum to no drop.

    Args:
        eps: of a step, in pixel units of [0, 1].
        steps: m, the most steps of a path.
        classes: how many false classes, drawn for each image by its seed (all where there are fewer); or the classes
            themselves, of which an image's own target is left out.
        score: what is attributed, p_target.
        average: "mean" or "sum" over classes, of values, drop and stderr; None is the mean, and the authors' sum with
            their variant.
        variant: "authors" reproduces the code: its steps, the ascent of p itself, and with a number for `classes` its
            fixed grid range(0, K - 1, K // number).
    """

    eps: float = 0.05
    steps: int = 20
    classes: int | tuple[int, ...] = 20
    score: Score = "prob"
    average: Literal["mean", "sum"] | None = None
    variant: Literal["sound", "authors"] = "sound"

    def __post_init__(self) -> None:
        validation.number("eps", self.eps, 0, open_low=True)
        validation.integer("steps", self.steps, 1)
        validation.choice("score", self.score, ("logit", "log_prob", "prob"))
        if self.average is not None:
            validation.choice("average", self.average, ("mean", "sum"))
        validation.choice("variant", self.variant, ("sound", "authors"))
        if isinstance(self.classes, tuple):
            if not self.classes or len(set(self.classes)) < len(self.classes):
                raise validation.fail("classes", "different classes, at least one", repr(self.classes))
            for place, label in enumerate(self.classes):
                validation.integer(f"classes[{place}]", label, 0)
        else:
            validation.integer("classes", self.classes, 1)

    @property
    def stochastic(self) -> bool:
        """Whether the false classes are drawn."""
        return isinstance(self.classes, int)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return AGI over false classes; zeros for an image that none is left for."""
        false = self._false(target, seeds, logits.shape[1])
        used = false != target[:, None]
        authors = self.variant == "authors"
        total = self.average == "sum" or (authors and self.average is None)
        walk = GuidedWalk(images, target, logits, used, self.score, from_image=authors)
        origin = images.repeat_interleave(used.shape[1], 0) if authors else None
        walk.run(_Attack(classifier, false.flatten(), self.eps, "prob" if authors else "log_prob", origin), self.steps)
        return walk.attribution(walk.arrived.unflatten(0, used.shape), total=total)

    def _false(self, target: Tensor, seeds: Tensor, classes: int) -> Tensor:
        """Return the false classes of each image, (B, P); its target may be among them."""
        if isinstance(self.classes, tuple):
            if max(self.classes) >= classes:
                raise validation.fail("classes", f"class indices in [0, {classes - 1}]", repr(self.classes))
            return torch.tensor(self.classes, device=target.device).expand(len(target), -1)
        if self.variant == "authors":
            step = max(1, classes // self.classes)
            return torch.arange(0, classes - 1, step, device=target.device).expand(len(target), -1)
        drawn = noise.uniform(noise.fold(seeds, "classes"), (classes,), torch.float32)
        order = drawn.scatter(1, target[:, None], torch.inf).argsort(dim=1, stable=True)
        return order[:, : min(self.classes, classes - 1)]
