"""IG2: integrated gradients on an iterative gradient path towards counterfactual references."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustsigma.engine import validation
from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.baselines import BaselineFn, checked_references, references
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor
from robustsigma.engine.attributors.guided_walk import GuidedWalk
from robustsigma.engine.attributors.layer_maps import layer_of
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import at_least_single
from robustsigma.engine.scores import Score, target_score

_STAND_INS = 4  # noise images used as references where none are given
_LEAST_LENGTH = 1e-12  # a shorter gradient gives no direction
_PER_IMAGE = (-1, 1, 1, 1)


class FeatureApproach:
    """Leads rows towards their references (R,) in the representation, by steps of one length.

    With `stops`, a path ends where a step brought the representation no closer.
    """

    def __init__(
        self, distances: Classifier, classes: int, reference: Tensor, step_size: float, *, stops: bool
    ) -> None:
        self.classifier, self.classes, self.reference = distances, classes, reference
        self.step_size, self.stops = step_size, stops
        self.best = torch.full(reference.shape, -torch.inf, device=reference.device)

    def guiding_score(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return minus the squared distance to the row's reference."""
        return target_score(outputs, self.classes + self.reference[rows], "logit")

    def step(self, outputs: Tensor, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return a step of `step_size` in the root mean square along the gradient, and whether the path ends here."""
        now = self.guiding_score(outputs, rows).to(self.best.dtype)
        length = gradient.flatten(1).norm(dim=1)
        ended = length <= _LEAST_LENGTH
        if self.stops:
            ended |= now <= self.best[rows]
        self.best[rows] = now
        length = torch.where(length > _LEAST_LENGTH, length, torch.inf)
        return self.step_size * gradient[0].numel() ** 0.5 * (gradient / length.reshape(_PER_IMAGE)), ended

    def is_done(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return True: a path may use all its steps."""
        return torch.ones_like(rows, dtype=torch.bool)


@dataclass(frozen=True)
class IG2(Attributor):
    """IG2 (Zhuo and Ge, 2024): from the image, steps of equal length bring its representation h to a reference's.

    u_{k+1} = clip(u_k + eta v / ||v||), v = -grad ||h(u_k) - h(r)||^2, and values = sum over k of
    (u_k - u_{k+1}) * dF(u_k), mean over references r: they sum to the drop of F up to the error of a Riemann sum.
    References are the result's paths. One that the network assigns to the explained class is no counterfactual: it is
    not walked, unless there is no other. A path ends early where h comes no closer; `converged` is False where it
    could not be moved at all. A step costs 1 forward pass and 2 backward passes a reference; the passes that find the
    references' own h are shared by the batch. `published.AuthorsIG2` reproduces the authors' code.

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

    Example:
        >>> IG2(steps=20)(classifier, images, target, seed=0).heatmap()
    """

    references: BaselineFn | Tensor | FrozenTensor | None = None
    steps: int = 201
    step_size: float = 0.494 / 255
    layer: str | None = None
    score: Score = "logit"

    exhaustive: ClassVar[bool] = False  # whether every reference is walked to, with all steps
    unit: ClassVar[float] = 1.0  # of the steps that gradients are multiplied by, per unit of pixels

    def __post_init__(self) -> None:
        validation.integer("steps", self.steps, 1)
        validation.number("step_size", self.step_size, 0, open_low=True)
        object.__setattr__(self, "references", checked_references(self.references))

    @property
    def stochastic(self) -> bool:
        """Whether references come from a function, which may use the seeds."""
        return callable(self.references) and not isinstance(self.references, FrozenTensor)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return IG2, mean over references."""
        found = references(self.references, images, seeds, classifier.bounds, _STAND_INS)
        count, classes = len(found), logits.shape[1]
        with negative_feature_distance(classifier, self.layer, found, classes) as (distances, seen):
            other = seen.argmax(1)[None] != target[:, None]
            used = torch.ones_like(other) if self.exhaustive else other | ~other.any(1, keepdim=True)
            walk = GuidedWalk(images, target, logits, used, self.score)
            reference = torch.arange(count, device=images.device).repeat(len(images))
            guide = FeatureApproach(distances, classes, reference, self.step_size, stops=not self.exhaustive)
            walk.run(guide, self.steps)
        walk.values *= self.unit
        return walk.attribution(walk.steps.unflatten(0, used.shape) > 0, shared=count)


class _Tap(nn.Module):
    """Returns logits, followed by the representation, or by minus its squared distance to each reference."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.references: Tensor | None = None
        self.caught: Tensor | None = None

    def catch(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep a layer's first input; of several layers or calls the last one's stays."""
        self.caught = (*inputs, *named.values())[0]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        caught, self.caught = self.caught, None
        # A network without a linear layer is represented by its logits.
        features = at_least_single((logits if caught is None else caught).flatten(1))
        if len(features) != len(x):
            raise validation.fail("layer", "one whose input holds one row for each image", f"{len(features)} rows")
        if self.references is not None:
            features = -(features[:, None] - self.references.to(features)).square().sum(2)
        return torch.cat([logits.to(features), features], 1)


def layers(classifier: Classifier, layer: str | None) -> list[nn.Module]:
    """Return the named module, or all linear ones, of which the last to run is the default."""
    if layer is None:
        return [module for module in classifier.net.modules() if isinstance(module, nn.Linear)]
    return [layer_of(classifier.net, layer)]


@contextmanager
def negative_feature_distance(
    classifier: Classifier, layer: str | None, references: Tensor, classes: int
) -> Iterator[tuple[Classifier, Tensor]]:
    """Yield a classifier of distances and the references' logits (R, K); the hooks are removed at the end.

    Its logits (B, K + R) are the classifier's own K = `classes` and, for each of the references (R, C, H, W),
    -||h(x) - h(r)||^2, where h is the input of `layer`. Call inside `frozen()`; R forward passes.
    """
    tap = _Tap(classifier)
    tapped = Classifier(tap, chunk_size=classifier.chunk_size, gradient_dtype=classifier.gradient_dtype)
    tapped.to(classifier.mean.device)  # a network without parameters does not say where it is
    hooks = [module.register_forward_pre_hook(tap.catch, with_kwargs=True) for module in layers(classifier, layer)]
    try:
        seen = tapped.logits(references)
        tap.references = seen[:, classes:]
        yield tapped, seen[:, :classes]
    finally:
        for hook in hooks:
            hook.remove()
