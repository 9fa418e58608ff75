"""Accuracy over the radius of an attack, over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.metrics import paired_difference, share_interval
from robustsigma.evaluation.matrix import Matrix


@dataclass(frozen=True)
class SeedCurves:
    """The curves of one regime under one attack, at the radii that all seeds have.

    Attributes:
        eps: (E,) increasing, the first is 0.
        right: (seeds, E, n), 1 where the answer is right.
        chance: accuracy of guessing.
        complete: whether the last ball holds every image.
    """

    eps: NDArray[np.float64]
    right: NDArray[np.float64]
    chance: float
    complete: bool

    @property
    def reached(self) -> bool:
        """Whether no more than chance is right at the end."""
        return bool(self.right[:, -1].mean() <= self.chance)


def common(matrix: Matrix, regime: str, column: str) -> SeedCurves | None:
    """Return the curves of a cell, or None where they were not measured."""
    diagnoses = matrix.diagnoses.get(regime) or []
    found = [diagnosis.curves[column] for diagnosis in diagnoses if column in diagnosis.curves]
    if not found or len(found) < len(diagnoses):
        return None
    # A seed whose accuracy fell to chance sooner has fewer radii.
    eps = reduce(np.intersect1d, [curve.eps for curve in found])
    right = np.stack([curve.right[np.isin(curve.eps, eps)] for curve in found]).astype(np.float64)
    return SeedCurves(eps, right, 1 / diagnoses[0].classes, bool(eps[-1] >= found[0].most))


def surely_rises(curves: SeedCurves) -> bool:
    """Return whether the accuracy surely rises somewhere from one radius to the next."""
    steps = range(1, len(curves.eps))
    return any(paired_difference(curves.right[:, k], curves.right[:, k - 1]).low > 0 for k in steps)


def curve_entries(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every curve with its band, as the report takes it."""
    entries = []
    for regime in matrix.regimes:
        for column in matrix.columns:
            found = common(matrix, regime.id, column.id)
            if found is None:
                continue
            bands = [share_interval(found.right[:, k]) for k in range(len(found.eps))]
            entries.append(
                {
                    "regime": regime.id,
                    "condition": column.id,
                    "eps": found.eps.tolist(),
                    "mean": [band.mean for band in bands],
                    "low": [band.low for band in bands],
                    "high": [band.high for band in bands],
                    "n": found.right.shape[-1],
                    "chance": found.chance,
                    "reached": found.reached,
                }
            )
    return entries
