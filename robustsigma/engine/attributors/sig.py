"""Spectral Integrated Gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors.baselines import Baseline
from robustsigma.engine.attributors.path_methods import CurvedPath, Line, PathResult, StraightLineAttributor
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score


@dataclass(frozen=True, eq=False)
class SpectralCurve(CurvedPath):
    """The path on which singular components of image - base appear, the largest first; `overlap` is that of `SIG`."""

    overlap: float = 1.0

    def __post_init__(self) -> None:
        # One decomposition for the whole path; the class is frozen.
        object.__setattr__(self, "_parts", torch.linalg.svd(self.images - self.base, full_matrices=False))

    def place(self, rows: slice, t: Tensor) -> Tensor:
        """Return base + U diag(s * progress) V^T."""
        left, sizes, right = (part[rows, None] for part in self._parts)  # type: ignore[attr-defined]
        strength = sizes / sizes[..., :1].clamp(min=torch.finfo(sizes.dtype).tiny)
        begin = (1 - self.overlap) * (1 - strength)
        progress = ((t.reshape(-1, 1, 1) - begin) / self.overlap).clamp(0, 1)
        return self.base[rows, None] + (left * (sizes * progress)[..., None, :]) @ right


@dataclass(frozen=True)
class SIG(StraightLineAttributor):
    """Spectral IG: the integral of the gradient along a path from coarse to fine structure (Kim et al., 2026).

    Each channel of image - baseline is decomposed into singular components. A component of size s, relative to the
    channel's largest, grows evenly from nothing to all between t = (1 - w)(1 - s) and t = (1 - w)(1 - s) + w, w being
    `overlap`, so that large ones come first. `values` sum to F(image) - F(baseline) up to the error of a midpoint rule
    (the authors' code takes each step's left end), and exactly so on a linear network.

    It costs `steps` forward and backward passes a baseline, and one forward pass for each end.

    Args:
        steps: number of steps of the path, a gradient each.
        overlap: w, in (0, 1]; 1 is the straight line. The authors' configuration has 0.4.
        baseline: where the path starts, as for `IntegratedGradients`.
        score: F. The authors' code explains the softmax.

    Example:
        >>> SIG(steps=50)(classifier, images, target).heatmap()
    """

    steps: int = 200
    overlap: float = 0.4
    baseline: Baseline = "black"
    score: Score = "prob"

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.number("overlap", self.overlap, 0, 1, open_low=True)

    def lines(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> list[Line]:
        """Return the path from each baseline."""
        straight = super().lines(classifier, images, target, logits, seeds)
        return [SpectralCurve(**vars(line), overlap=self.overlap) for line in straight]

    def integrate(self, line: Line) -> PathResult:
        """Return the sum along one path."""
        assert isinstance(line, SpectralCurve)
        return line.integrated(self.steps)
