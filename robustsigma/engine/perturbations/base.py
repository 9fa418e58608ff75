"""What every perturbation takes and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

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
    """Perturbed images and how they came about. B images.

    Attributes:
        images: (B, C, H, W) in bounds, detached.
        searched: (B,) bool, True where a search with a goal was run (SIGMA's walk).
        converged: (B,) bool, True where the search reached its goal; False where none was run.
        steps: (B,) int64, steps of the search.
    """

    images: Tensor
    searched: Tensor
    converged: Tensor
    steps: Tensor

    @staticmethod
    def plain(images: Tensor) -> Perturbed:
        """Return images that no search made."""
        no = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return Perturbed(images, no, no, no.long())

    def put(self, rows: Tensor, part: Perturbed) -> Perturbed:
        """Return a copy with `part` in place of the given rows."""
        pairs = {name: (getattr(self, name), getattr(part, name)) for name in self.__dataclass_fields__}
        return Perturbed(**{name: a.index_copy(0, rows, b.to(a.dtype)) for name, (a, b) in pairs.items()})


class Perturbation(validation.Settings, ABC):
    """A perturbation with its hyper-parameters; subclasses are frozen dataclasses."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        safe_in_checkpoints(cls)

    @final
    def __call__(self, classifier: Classifier | nn.Module, x: Tensor, y: Labels, *, seed: int | Tensor) -> Tensor:
        """Return x' (B, C, H, W), in bounds and detached; see `apply`.

        Raises:
            ValueError: as `apply` does.
        """
        return self.apply(classifier, x, y, seed=seed).images

    @final
    def apply(self, classifier: Classifier | nn.Module, x: Tensor, y: Labels, *, seed: int | Tensor) -> Perturbed:
        """Perturb images against the classifier in eval mode, which is left as it was.

        Args:
            classifier: the network to perturb against. A bare network is taken as one for images in [0, 1], with a
                warning.
            x: float (B, C, H, W) in [0, 1]; half precision is computed in float32 and rounded at the end.
            y: labels, an int or B of them.
            seed: an int, which is combined with each image's own pixels, or int64 (B,), a seed for each image; see
                `robustsigma.engine.noise.seeds`.

        Raises:
            ValueError: an argument outside what is stated here.

        Warns:
            UserWarning: once for a network whose attacks should not be believed; see `inspect_classifier`.
        """
        classifier = as_classifier(classifier)
        validation.images(x, classifier.bounds)
        labels = validation.target(y, x, "y")
        with classifier.frozen():
            clean, labels = classifier.prepare_input(x), labels.clone()
            seeds = noise.seeds(seed, clean).clone()
            classifier.check_target(labels, clean, "y")
            if self.depends_on_model:
                warn_once(classifier, clean, labels)
            result = self.perturb(classifier, clean, labels, seeds)
            images = result.images.detach().to(x.dtype).clamp(*classifier.bounds)
        if images.aminmax().min.isnan():  # all else was clamped
            raise validation.not_finite("gradients or scores", self)
        return replace(result, images=images)

    @property
    def depends_on_model(self) -> bool:
        """Whether another network would give other images: True for attacks, False for noise."""
        return True

    @property
    def bound(self) -> tuple[Norm, float] | None:
        """Norm and radius of the ball that images stay in, as settings `norm` and `eps` name it; None without both."""
        eps, norm = getattr(self, "eps", None), getattr(self, "norm", None)
        return None if eps is None or norm is None else (norm, float(eps))

    @property
    def batch_dependent(self) -> bool:
        """Whether an image's result depends on the rest of its batch: only where another's code draws the numbers."""
        return False

    @abstractmethod
    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Compute the perturbation; the arguments are checked and the classifier is frozen."""


def drawn(seeds: Tensor, name: str) -> Tensor:
    """Return one uniform draw in (0, 1) for each image, (B,)."""
    return noise.uniform(noise.fold(seeds, name), (1,), torch.float32)[:, 0]
