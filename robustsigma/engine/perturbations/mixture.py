"""Several perturbations side by side in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, drawn
from robustsigma.engine.serialization import safe_in_checkpoints


@safe_in_checkpoints
@dataclass(frozen=True)
class Share(validation.Settings):
    """One part of a mixture.

    Args:
        perturbation: of this part.
        share: of the images, in expectation.
    """

    perturbation: Perturbation
    share: float

    def __post_init__(self) -> None:
        if not isinstance(self.perturbation, Perturbation):
            raise validation.fail("perturbation", "a Perturbation", type(self.perturbation).__name__)
        validation.number("share", self.share, 0, 1)


@dataclass(frozen=True)
class Mixture(Perturbation):
    """Each image gets one of several perturbations, or none with the share that is left.

    The part is drawn for each image by its seed, so it does not depend on the rest of the batch.

    Args:
        parts: `Share`s (the form of a YAML file), or a mapping from perturbation to share, as in
            `Mixture({FGSM(0.03): 0.25, GaussianNoise(0.1): 0.25})`. Shares sum to at most 1.
    """

    parts: Sequence[Share] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        given: object = self.parts
        pairs = [Share(p, s) for p, s in given.items()] if isinstance(given, Mapping) else given
        if not isinstance(pairs, Sequence) or not pairs or not all(isinstance(part, Share) for part in pairs):
            raise validation.fail("parts", "at least one Share, or a mapping from perturbation to share", repr(given))
        object.__setattr__(self, "parts", tuple(pairs))
        validation.number("sum of shares", sum(part.share for part in self.parts), 0, 1 + 1e-9)

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return the mixture; each part sees its own images in one batch."""
        result = Perturbed.plain(x)
        for part, (rows, keys) in zip(self.parts, self.assigned(seeds), strict=True):
            if len(rows):
                result = result.put(rows, part.perturbation.perturb(classifier, x[rows], y[rows], keys))
        return result

    def assigned(self, seeds: Tensor, draws: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return for each part the rows that it gets, int64 (n,), and their seeds within it, int64 (n,).

        Args:
            seeds: int64 (B,), per image.
            draws: other seeds, int64 (B,), by which parts are drawn; None takes `seeds`.
        """
        draw, start, found = drawn(seeds if draws is None else draws, "mixture"), 0.0, []
        for number, part in enumerate(self.parts):
            rows = ((draw >= start) & (draw < start + part.share)).nonzero()[:, 0]
            start += part.share
            found.append((rows, part_seeds(seeds[rows], number)))
        return found

    @property
    def depends_on_model(self) -> bool:
        """Whether any part does."""
        return any(part.perturbation.depends_on_model for part in self.parts)

    @property
    def batch_dependent(self) -> bool:
        """Whether any part is."""
        return any(part.perturbation.batch_dependent for part in self.parts)


def part_seeds(seeds: Tensor, number: int) -> Tensor:
    """Return a part's own seeds: with the mixture's, a mixture inside it would repeat its draw."""
    return noise.fold(seeds, "part", number)
