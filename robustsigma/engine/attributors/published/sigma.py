"""The authors' PyTorch code of SIGMA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsigma.engine.attributors.sigma import Sigma
from robustsigma.engine.attributors.spsa_walk import ImageRange, RangeMode, SpsaWalk, State
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.noise import Noise
from robustsigma.engine.scores import Score

# The code holds pixels in [0, 255]; these constants, which it adds to denominators, are in those units.
_UNIT = 255.0
_RANGE_FLOOR, _SUM_FLOOR, _CURVATURE_FLOOR = 1e-10, 1e-10, 1e-8
_PER_IMAGE = (-1, 1, 1, 1)


class AuthorsRange(ImageRange):
    """The code's stretch of latent points in [0, 255]: M(v) = 255 (v - min) / (max - min + 1e-10)."""

    def __init__(self) -> None:
        pass

    def _stretch(self, points: Tensor) -> Tensor:
        low, high = (end.reshape(_PER_IMAGE) for end in points.flatten(1).aminmax(dim=1))
        return (points - low) / (high - low + _RANGE_FLOOR) * _UNIT

    def probe(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return M(v) / 255."""
        return self._stretch(points) / _UNIT

    def point(self, points: Tensor, rows: Tensor) -> Tensor:
        """Return M(M(v)) / 255: the code stretches the point when it makes it and again when it scores it."""
        return (self._stretch(self._stretch(points)) / _UNIT).clamp(0, 1)


class AuthorsWalk(SpsaWalk):
    """The code's walk. Its float32 latents round away much of each step; float64 gives the path that was meant."""

    gradient_score = "logit"
    unit = _UNIT
    dtype = torch.float64

    def _range(self) -> ImageRange:
        return AuthorsRange()

    def _moving(self, state: State) -> Tensor:
        return state.now > self.sigma.epsilon

    def _drawn(self, keys: Tensor) -> Tensor:
        # The stretch takes out the constant, so that {0, R} and +-R/2 give the same walk without the adaptive step.
        return super()._drawn(keys) + 1

    def _step_size(self, length: Tensor, curvature: Tensor) -> Tensor:
        return length / (curvature + _CURVATURE_FLOOR)

    def _scaled(self, gradient: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        gradient = gradient / _UNIT
        factor = drop / (gradient.flatten(1).sum(1) + _SUM_FLOOR)
        return gradient * factor.reshape(_PER_IMAGE), torch.ones_like(drop, dtype=torch.bool)

    def _redistribute(self, values: Tensor, residual: Tensor) -> Tensor:
        return values


@dataclass(frozen=True)
class AuthorsSigma(Sigma):
    """SIGMA's code: patterns of 0 or 1, and every evaluated image, the first too, is stretched to [0, 1].

    Gradients are of the logit with respect to the stretched image; 1e-10 is added to their sum, and all are scaled.
    `stderr` is the population standard deviation, and with several paths `values` are the mean of the paths' |values|,
    so that the heatmap is the mean of the paths' heatmaps. A path is never given up.

    Example:
        >>> AuthorsSigma(max_steps=20)(classifier, images, target, seed=0).heatmap()
    """

    objective: Score = field(default="prob", init=False, repr=False)
    noise: Noise = field(default="bernoulli", init=False, repr=False)
    range_mode: RangeMode = field(default="original", init=False, repr=False)
    min_sum_ratio: float = field(default=1e-4, init=False, repr=False)
    weighting: Literal["signed", "abs"] = field(default="signed", init=False, repr=False)
    normalized: bool = field(default=False, init=False, repr=False)
    relative_stderr: float | None = field(default=None, init=False, repr=False)
    patience: int = field(default=100, init=False, repr=False)

    walk_class: ClassVar[type[SpsaWalk]] = AuthorsWalk
    first_passes: ClassVar[int] = 2  # the first confidence is of the stretched image

    def _start_confidence(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor | None
    ) -> Tensor:
        stretched = AuthorsRange().probe((images * _UNIT).double(), target)
        return super()._start_confidence(classifier, stretched, target, None).to(images.dtype)

    def _summed(self, values: Tensor) -> Tensor:
        return (values.abs() if self.paths > 1 else values).sum(1)

    def _standard_error(self, squares: Tensor, count: Tensor) -> Tensor:
        return (squares / count).sqrt()
