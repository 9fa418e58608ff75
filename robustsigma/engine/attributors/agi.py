"""AGI: adversarial gradient integration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.guided_walk import GuidedWalk
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score


class SignAscent:
    """Leads rows to false classes (R,) by steps along the sign of their score's gradient."""

    def __init__(self, classifier: Classifier, false: Tensor, step_size: float, score: Score) -> None:
        self.classifier, self.false, self.step_size, self.score = classifier, false, step_size, score

    def guiding_score(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the false class's score."""
        return target_score(outputs, self.false[rows], self.score)

    def step(self, outputs: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return a step along the gradient's sign, and whether the false class is predicted, which ends the path."""
        return self.step_size * gradient.sign(), self.is_done(outputs, rows)

    def is_done(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return whether the false class is predicted."""
        return outputs.argmax(1) == self.false[rows]


@dataclass(frozen=True)
class AGI(Attributor):
    """AGI (Pan, Li and Zhu, 2021): from the image, steepest ascent of a false class until it is predicted.

    u_{k+1} = clip(u_k + step_size * sgn(grad log p_false(u_k))), values = sum over k of
    (u_k - u_{k+1}) * grad p_target(u_k), mean over false classes: they sum to the drop of p up to the error of a
    Riemann sum. False classes are the result's paths; `converged` marks those that came to be predicted. A step costs
    1 forward pass and 2 backward passes a class. `published.AuthorsAGI` reproduces the authors' code.

    Args:
        step_size: step size of the ascent, in pixel units of [0, 1].
        steps: m, the most steps of a path.
        classes: number of false classes, drawn for each image by its seed (all where there are fewer); or the classes
            themselves, of which an image's own target is left out.
        score: what is attributed, p_target.
        average: "mean" or "sum" over classes, of values, drop and stderr.

    Example:
        >>> AGI(steps=5)(classifier, images, target, seed=0).heatmap()
    """

    step_size: float = 0.05
    steps: int = 20
    classes: int | tuple[int, ...] = 20
    score: Score = "prob"
    average: Literal["mean", "sum"] = "mean"

    walk_class: ClassVar[type[GuidedWalk]] = GuidedWalk
    ascended: ClassVar[Score] = "log_prob"  # of the false class

    def __post_init__(self) -> None:
        validation.number("step_size", self.step_size, 0, open_low=True)
        validation.integer("steps", self.steps, 1)
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
        """Return AGI over false classes; zeros for an image without any."""
        false = self._false_classes(target, seeds, logits.shape[1])
        walk = self.walk_class(images, target, logits, false != target[:, None], self.score)
        walk.run(SignAscent(classifier, false.flatten(), self.step_size, self.ascended), self.steps)
        return walk.attribution(walk.done.unflatten(0, false.shape), total=self.average == "sum")

    def _false_classes(self, target: Tensor, seeds: Tensor, classes: int) -> Tensor:
        """Return the false classes of each image, (B, P); its target may be among them."""
        if isinstance(self.classes, tuple):
            if max(self.classes) >= classes:
                raise validation.fail("classes", f"class indices in [0, {classes - 1}]", repr(self.classes))
            return torch.tensor(self.classes, device=target.device).expand(len(target), -1)
        return self._drawn(self.classes, target, seeds, classes)

    def _drawn(self, count: int, target: Tensor, seeds: Tensor, classes: int) -> Tensor:
        drawn = noise.uniform(noise.fold(seeds, "classes"), (classes,), torch.float32)
        order = drawn.scatter(1, target[:, None], torch.inf).argsort(dim=1, stable=True)
        return order[:, : min(count, classes - 1)]
