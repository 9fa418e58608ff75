"""Base classes of attribution methods and their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor, nn

from robustsigma.engine import noise, validation
from robustsigma.engine.checks import warn_once
from robustsigma.engine.classifier import Classifier, as_classifier
from robustsigma.engine.short_repr import ShortRepr

Reduction = Literal["abs_sum", "sum_abs", "sum", "mean"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def reduce_channels(values: Tensor, reduction: Reduction) -> Tensor:
    """Return (B, H, W) of values (B, C, H, W): over channels the sum of |values|, the |sum|, the sum, or the mean."""
    validation.choice("reduction", reduction, REDUCTIONS)
    if reduction == "abs_sum":
        return values.abs().sum(1)
    if reduction == "mean":
        return values.mean(1)
    total = values.sum(1)
    return total.abs() if reduction == "sum_abs" else total


def split_passes(passes: int, images: int, device: torch.device) -> Tensor:
    """Return passes that the images of a batch have in common, divided among them, int64 (images,)."""
    return passes // images + (torch.arange(images, device=device) < passes % images)


def standard_error(sums: Tensor, draws: int) -> Tensor:
    """Return the standard error (...) of a mean over draws, from their sum and the sum of their squares, (2, ...)."""
    total, squares = sums
    spread = (squares - total.square() / draws).clamp(min=0)
    return (spread / (draws - 1) / draws).sqrt()


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(ShortRepr):
    """An attribution and what is needed to evaluate it. B images, P paths, S steps of the longest path.

    Its `repr` is short: shapes and ranges, the share of converged paths and the mean completeness gap.

    Attributes:
        values: (B, C, H, W), signed, in the units of the score; the mean over paths.
        target: int64 (B,), the class that was explained.
        endpoint: (B, C, H, W) in bounds: the far end of the path; for SIGMA the zero-confidence sample of path 0.
        drop: (B,) score(image) - score(endpoint), the mean over paths: what `values` should sum to.
        confidence: (B, P, S + 1) the score along each path from the image, NaN after its end; on a straight line
            (B, P, S + 2), both ends and the S points between.
        steps: (B, P) int64, number of steps.
        converged: (B, P) bool, whether the path ended as the method intends; False for a path that was not walked.
        forwards: (B,) int64, forward passes spent on the image, including those of gradients.
        backwards: (B,) int64, backward passes spent on the image.
        stderr: (B, H, W) standard error over paths of the abs_sum heatmap, or None for a single path.
        endpoints: (B, P, C, H, W), or None where a method has one path.
        valid: (B,) share of the gradients along the paths that the method used, or None where it always uses all.

    Example:
        >>> result = IntegratedGradients()(classifier, images, labels)
        >>> result.heatmap().shape, result.gap().shape
    """

    values: Tensor
    target: Tensor
    endpoint: Tensor
    drop: Tensor
    confidence: Tensor
    steps: Tensor
    converged: Tensor
    forwards: Tensor
    backwards: Tensor
    stderr: Tensor | None = None
    endpoints: Tensor | None = None
    valid: Tensor | None = None

    def _notes(self) -> dict[str, str]:
        share = self.converged[self.walked].double().mean().item()
        return {"converged paths": f"{share:.0%}", "mean completeness gap": f"{self.gap().double().mean().item():.3g}"}

    @property
    def walked(self) -> Tensor:
        """(B, P) bool, whether the path was walked; a path that a method leaves out has no score."""
        return ~self.confidence[..., 0].isnan()

    def all_converged(self) -> Tensor:
        """Return (B,) bool, whether every path that was walked converged."""
        return (self.converged | ~self.walked).all(1)

    def gap(self) -> Tensor:
        """Return |sum of values - drop| (B,), the completeness gap."""
        return (self.values.flatten(1).sum(1) - self.drop).abs()

    def heatmap(self, reduction: Reduction = "abs_sum") -> Tensor:
        """Return (B, H, W): over channels the sum of |values|, the |sum|, the signed sum, or its mean."""
        return reduce_channels(self.values, reduction)


class Attributor(validation.Settings, ABC):
    """An attribution method with its settings; subclasses are frozen dataclasses.

    Example:
        >>> classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)))
        >>> from robustsigma import IntegratedGradients
        >>> IntegratedGradients(steps=8)(classifier, torch.rand(2, 3, 4, 4)).heatmap().shape
        torch.Size([2, 4, 4])
    """

    @property
    def stochastic(self) -> bool:
        """Whether other seeds may give other values."""
        return False

    @final
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        target: int | Sequence[int] | Tensor | None = None,
        *,
        seed: int | Tensor = 0,
    ) -> Attribution:
        """Attribute the score of `target` to the pixels of each image.

        Args:
            classifier: the model to explain; left as it was, also on an error. A bare network is taken as one for
                images in [0, 1], with a warning.
            images: float (B, C, H, W) in [0, 1]; half precision is promoted to float32.
            target: class of each image, an int or B of them; None takes the predicted class, recorded in the result.
            seed: an int, which is combined with each image's own pixels, or int64 (B,), a seed for each image; see
                `robustsigma.engine.noise.seeds`. Images with equal seeds of their own share their random patterns.

        Raises:
            ValueError: an argument outside what is stated here.

        Warns:
            UserWarning: once for a network whose attributions should not be believed; see `inspect_classifier`.
        """
        classifier = as_classifier(classifier)
        validation.images(images, classifier.bounds)
        chosen = None if target is None else validation.target(target, images)
        with classifier.frozen():
            x = classifier.prepare_input(images)
            seeds = noise.seeds(seed, x).clone()
            logits = classifier.logits(x)
            if not torch.isfinite(logits).all():
                raise validation.not_finite("logits", self)
            chosen = logits.argmax(1) if chosen is None else chosen.clone()
            validation.target_range(validation.extent(chosen), logits.shape[1])
            if not classifier.checked:
                warn_once(classifier, x, chosen)
            result = self.attribute(classifier, x, chosen, logits, seeds)
        if not isinstance(result.values, Tensor) or result.values.shape != x.shape:
            got = tuple(result.values.shape) if isinstance(result.values, Tensor) else type(result.values).__name__
            raise validation.fail(f"{type(self).__name__}.attribute", f"values of shape {tuple(x.shape)}", got)
        finite = torch.isfinite(result.values).flatten(1).all(1) & torch.isfinite(result.drop)
        if not finite.all():
            bad = (~finite).nonzero()[:, 0].tolist()
            raise validation.not_finite(f"gradients or scores for images {bad}", self)
        return result

    @abstractmethod
    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Compute the method; the arguments are checked, the classifier is frozen, `logits` are those of `images`."""


def single_point_result(
    values: Tensor, target: Tensor, images: Tensor, score: Tensor, *, passes: tuple[int, int]
) -> Attribution:
    """Return the result of a method without a path: the endpoint is the image, and the drop is 0.

    Args:
        values: (B, C, H, W).
        target: (B,).
        images: (B, C, H, W).
        score: (B,) of the target, the only point of the curve.
        passes: number of forward and of backward passes for each image.
    """
    count, device = len(images), images.device
    return Attribution(
        values=values,
        target=target,
        endpoint=images,
        drop=torch.zeros(count, dtype=images.dtype, device=device),
        confidence=score.to(images.dtype).reshape(count, 1, 1),
        steps=torch.zeros(count, 1, dtype=torch.int64, device=device),
        converged=torch.ones(count, 1, dtype=torch.bool, device=device),
        forwards=torch.full((count,), passes[0], device=device),
        backwards=torch.full((count,), passes[1], device=device),
    )
