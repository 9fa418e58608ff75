"""The interface of every perturbation, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final, overload

import torch
from torch import Tensor, nn

from robustsigma.engine import noise, validation
from robustsigma.engine.checks import warn_once
from robustsigma.engine.classifier import Classifier, as_classifier
from robustsigma.engine.perturbations.ball import Norm
from robustsigma.engine.serialization import safe_in_checkpoints
from robustsigma.engine.short_repr import ShortRepr

Labels = int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Perturbed(ShortRepr):
    """Perturbed images and how they were made. B images.

    Attributes:
        images: (B, C, H, W), within the classifier's bounds, detached.
        attempted: (B,) bool, True where a search with a goal was run (SIGMA's walk).
        converged: (B,) bool, True where the search reached its goal; False where none was run.
        steps: (B,) int64, steps of the search.
    """

    images: Tensor
    attempted: Tensor
    converged: Tensor
    steps: Tensor

    @staticmethod
    def plain(images: Tensor) -> Perturbed:
        """Return images that were made without a search."""
        no = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return Perturbed(images, no, no, no.long())

    def put(self, rows: Tensor, part: Perturbed) -> Perturbed:
        """Return a copy in which `part` replaces the given rows."""
        pairs = {name: (getattr(self, name), getattr(part, name)) for name in self.__dataclass_fields__}
        return Perturbed(**{name: a.index_copy(0, rows, b.to(a.dtype)) for name, (a, b) in pairs.items()})


class Perturbation(validation.Settings, ABC):
    """A perturbation and its hyperparameters; subclasses are frozen dataclasses.

    Example:
        >>> adversarial = FGSM(8 / 255)(classifier, images, labels, seed=0)
        >>> info = SigmaSample()(classifier, images, labels, seed=0, return_info=True)
        >>> info.converged.float().mean()
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        safe_in_checkpoints(cls)

    @overload
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        labels: Labels,
        *,
        seed: int | Tensor,
        return_info: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        labels: Labels,
        *,
        seed: int | Tensor,
        return_info: Literal[True],
    ) -> Perturbed: ...

    @final
    def __call__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        labels: Labels,
        *,
        seed: int | Tensor,
        return_info: bool = False,
    ) -> Tensor | Perturbed:
        """Perturb images against a classifier in eval mode; its own mode is restored afterwards.

        Args:
            classifier: network to perturb against. A bare `nn.Module` is used as a classifier of images in [0, 1],
                with a warning.
            images: float (B, C, H, W) in [0, 1]. Half precision is computed in float32 and rounded at the end.
            labels: class indices, one int for all images or B of them.
            seed: an int, which is combined with a hash of each image's pixels, or int64 (B,), one seed for each
                image; see `robustsigma.engine.noise.seeds`.
            return_info: whether to return a `Perturbed`, which also says whether searches converged.

        Returns:
            The perturbed images (B, C, H, W), within the classifier's bounds and detached; or a `Perturbed`.

        Raises:
            ValueError: an argument is invalid, or the network returns values that are not finite.

        Warns:
            UserWarning: once for a network whose attacks should not be believed; see `inspect_classifier`.
        """
        classifier = as_classifier(classifier)
        validation.images(images, classifier.bounds)
        target = validation.target(labels, images, "labels")
        with classifier.frozen():
            clean, target = classifier.prepare_input(images), target.clone()
            seeds = noise.seeds(seed, clean).clone()
            classifier.check_target(target, clean, "labels")
            if self.depends_on_model and not classifier.checked:
                warn_once(classifier, clean, target)
            info = self.perturb(classifier, clean, target, seeds)
            result = info.images.detach().to(images.dtype).clamp(*classifier.bounds)
        if result.aminmax().min.isnan():  # all other values were clamped
            raise validation.not_finite("gradients or scores", self)
        return replace(info, images=result) if return_info else result

    @property
    def depends_on_model(self) -> bool:
        """Whether another network would give other images: True for attacks, False for noise."""
        return True

    @property
    def bound(self) -> tuple[Norm, float] | None:
        """Norm and radius of the ball that images stay in, from the settings `norm` and `eps`; None without both."""
        eps, norm = getattr(self, "eps", None), getattr(self, "norm", None)
        return None if eps is None or norm is None else (norm, float(eps))

    @property
    def batch_dependent(self) -> bool:
        """Whether an image's result depends on the rest of its batch: only where another library draws the numbers."""
        return False

    @abstractmethod
    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Compute the perturbation; the arguments were checked and the classifier is frozen."""


def uniform_draw(seeds: Tensor, name: str) -> Tensor:
    """Return one uniform draw in (0, 1) for each image, (B,)."""
    return noise.uniform(noise.fold(seeds, name), (1,), torch.float32)[:, 0]
