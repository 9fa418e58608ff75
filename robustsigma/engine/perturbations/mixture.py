"""Several perturbations side by side in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, drawn_rows, uniform_draw


@dataclass(frozen=True)
class MixtureComponent(validation.Settings):
    """One perturbation of a mixture.

    Args:
        perturbation: the perturbation.
        share: expected fraction of the images that it perturbs, in [0, 1].

    Example:
        >>> Mixture([MixtureComponent(FGSM(0.03), 0.25)])(classifier, images, labels, seed=0)
    """

    perturbation: Perturbation
    share: float

    def __post_init__(self) -> None:
        validation.instance("perturbation", self.perturbation, Perturbation)
        validation.number("share", self.share, 0, 1)


@dataclass(frozen=True)
class Mixture(Perturbation):
    """Perturb each image by one of several perturbations, or leave it as it is.

    Each image's seed decides which component perturbs it, so the rest of the batch does not matter. In training each
    batch has fixed numbers of images for the components instead, and the seeds decide which images these are.

    Args:
        parts: a list of `MixtureComponent` (the form of a YAML file), or a mapping from perturbation to share. Shares
            sum to at most 1; the rest of the images stays unchanged.

    Example:
        >>> Mixture({FGSM(0.03): 0.25, GaussianNoise(0.1): 0.25})(classifier, images, labels, seed=0)
    """

    parts: Sequence[MixtureComponent] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        given: object = self.parts
        pairs = [MixtureComponent(p, s) for p, s in given.items()] if isinstance(given, Mapping) else given
        if not isinstance(pairs, Sequence) or not pairs or not all(isinstance(p, MixtureComponent) for p in pairs):
            expected = "at least one MixtureComponent, or a mapping from perturbation to share"
            raise validation.fail("parts", expected, repr(given))
        object.__setattr__(self, "parts", tuple(pairs))
        validation.number("sum of shares", sum(part.share for part in self.parts), 0, 1 + 1e-9)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return the mixture; each component perturbs its own images in one batch."""
        result = Perturbed.plain(images)
        for part, (rows, keys) in zip(self.parts, self.assigned(seeds), strict=True):
            if len(rows):
                result = result.put(rows, part.perturbation.count_passes(classifier, images[rows], labels[rows], keys))
        return result

    def assigned(
        self, seeds: Tensor, draws: Tensor | None = None, offset: float | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return, for each component, its rows, int64 (n,), and their seeds within it, int64 (n,).

        Args:
            seeds: int64 (B,), one seed for each image.
            draws: int64 (B,), other seeds that decide the component of each image; None uses `seeds`.
            offset: in [0, 1), fixes the number of rows of each component; see `drawn_rows`.
        """
        draw, start, found = uniform_draw(seeds if draws is None else draws, "mixture"), 0.0, []
        for number, part in enumerate(self.parts):
            rows = drawn_rows(draw, start, start + part.share, offset)
            start += part.share
            found.append((rows, part_seeds(seeds[rows], number)))
        return found

    @property
    def depends_on_model(self) -> bool:
        """Whether any component depends on the model."""
        return any(part.perturbation.depends_on_model for part in self.parts)

    @property
    def batch_dependent(self) -> bool:
        """Whether any component depends on the batch."""
        return any(part.perturbation.batch_dependent for part in self.parts)


def part_seeds(seeds: Tensor, number: int) -> Tensor:
    """Return a component's own seeds: with the mixture's seeds, a mixture inside it would repeat its draw."""
    return noise.fold(seeds, "part", number)
