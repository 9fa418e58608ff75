"""Several perturbations side by side in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, drawn


@dataclass(frozen=True)
class Share:
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
        pairs = [Share(p, s) for p, s in given.items()] if isinstance(given, Mapping) else list(self.parts)
        object.__setattr__(self, "parts", tuple(pairs))
        if not self.parts or not all(isinstance(part, Share) for part in self.parts):
            raise validation.fail("parts", "at least one Share, or a mapping from perturbation to share", repr(given))
        validation.number("sum of shares", sum(part.share for part in self.parts), 0, 1 + 1e-9)

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return the mixture; each part sees its own images in one batch."""
        result, draw, start = Perturbed.plain(x), drawn(seeds, "mixture"), 0.0
        for part in self.parts:
            rows = ((draw >= start) & (draw < start + part.share)).nonzero()[:, 0]
            start += part.share
            if len(rows):
                result = result.put(rows, part.perturbation.perturb(classifier, x[rows], y[rows], seeds[rows]))
        return result
