"""IG2: integrated gradients on an iterative gradient path towards counterfactual references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import Function, Given, given, references
from robustsigma.engine.attributors.guided_walk import GuidedWalk
from robustsigma.engine.attributors.image_range import AUTHORS_UNIT
from robustsigma.engine.attributors.representation import negative_feature_distance
from robustsigma.engine.classifier import SCORES, Classifier, Score, target_score

# Noise images that stand in for references where none are given.
_STAND_INS = 4
# A direction shorter than this is no direction.
_DEAD = 1e-12

_PER_IMAGE = (-1, 1, 1, 1)


class _Approach:
    """Leads rows towards their references in the representation, by steps of one length."""

    def __init__(self, closer: Classifier, classes: int, reference: Tensor, step_size: float, *, stops: bool) -> None:
        self.classifier, self.classes, self.reference = closer, classes, reference
        self.step_size, self.stops = step_size, stops
        self.best = torch.full(reference.shape, -torch.inf, device=reference.device)

    def leading(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Return the closeness to the row's reference."""
        return target_score(seen, self.classes + self.reference[rows], "logit")

    def look(self, seen: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A path ends where the representation came no closer, or cannot be moved."""
        close = self.leading(seen, rows).to(self.best.dtype)
        length = gradient.flatten(1).norm(dim=1)
        ended = length <= _DEAD
        if self.stops:
            ended |= close <= self.best[rows]
        self.best[rows] = close
        length = torch.where(length > _DEAD, length, torch.inf)
        return gradient / length.reshape(_PER_IMAGE), ended

    def glance(self, seen: Tensor, rows: Tensor) -> Tensor:
        """Using up the steps is a proper end."""
        return torch.ones_like(rows, dtype=torch.bool)

    def advance(self, points: Tensor, direction: Tensor, rows: Tensor) -> Tensor:
        """Step by `step_size` for each feature in the root mean square, clipped into range."""
        length = self.step_size * points[0].numel() ** 0.5
        return (points + length * direction).clamp(*self.classifier.bounds)


@dataclass(frozen=True)
class IG2(Attributor):
    """IG2 (Zhuo and Ge, 2024): from the image, steps of equal length bring its representation h to a reference's.

    u_{k+1} = clip(u_k + eta v / ||v||), v = -grad ||h(u_k) - h(r)||^2, and values = sum over k of
    (u_k - u_{k+1}) * dF(u_k), mean over references r: they sum to the drop of F up to the error of a Riemann sum.
    References are the result's paths. One that the network gives to the explained class is no counterfactual: it is
    not walked, unless there is no other. A path ends early where h comes no closer; `converged` is False where it
    could not be moved at all. A step costs 1 forward pass and 2 backward passes a reference; the passes that find the
    references' own h are shared by the batch.

    Args:
        references: (R, C, H, W) in [0, 1], usually training images, or a function (images, seeds) -> references,
            the same for every image of the batch. None stands for 4 uniform noise images, which need no data but
            are samples of no class.
        steps: K, the most steps of a path.
        step_size: eta for each feature in the root mean square, in pixel units of [0, 1]; the default is the
            paper's 256 on 299x299 images of [0, 255].
        layer: name of the module of the net whose input is h; None takes the last linear layer that runs, or the
            logits where there is none.
        score: F.
        variant: "authors" walks to every reference with all steps, and multiplies by 255 the values, whose gradients
            their code takes in [0, 1] and differences in [0, 255].
    """

    references: Function | Tensor | Given | None = None
    steps: int = 201
    step_size: float = 0.494 / 255
    layer: str | None = None
    score: Score = "logit"
    variant: Literal["sound", "authors"] = "sound"

    def __post_init__(self) -> None:
        validation.integer("steps", self.steps, 1)
        validation.number("step_size", self.step_size, 0, open_low=True)
        validation.choice("score", self.score, SCORES)
        validation.choice("variant", self.variant, ("sound", "authors"))
        if self.references is not None and not callable(self.references):
            object.__setattr__(self, "references", given("references", self.references, floating=True))

    @property
    def stochastic(self) -> bool:
        """Whether references come from a function, which may draw."""
        return callable(self.references) and not isinstance(self.references, Given)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return IG2, mean over references."""
        assert self.references is None or callable(self.references)  # a tensor was wrapped
        bank = references(self.references, images, seeds, classifier.bounds, _STAND_INS)
        count, classes = len(bank), logits.shape[1]
        authors = self.variant == "authors"
        with negative_feature_distance(classifier, self.layer, bank, classes) as (closer, seen):
            other = seen.argmax(1)[None] != target[:, None]
            used = torch.ones_like(other) if authors else other | ~other.any(1, keepdim=True)
            walk = GuidedWalk(images, target, logits, used, self.score)
            reference = torch.arange(count, device=images.device).repeat(len(images))
            walk.run(_Approach(closer, classes, reference, self.step_size, stops=not authors), self.steps)
        if authors:
            walk.values *= AUTHORS_UNIT
        return walk.attribution(walk.steps.unflatten(0, used.shape) > 0, shared=count)
