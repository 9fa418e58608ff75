"""The matrix of per-image outcomes, with what they say together: regimes by conditions, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.metrics import Interval, paired_difference, share_interval
from robustsigma.engine.perturbations import Identity
from robustsigma.evaluation.diagnosis import AttackCheckResults
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.run import ADAPTIVE, Column, Regime
from robustsigma.evaluation.threat import ball

Table = NDArray[np.float64]
CONTROL = "clean/retrain"
WORST = "worst"


class Fall(NamedTuple):
    """A training that overfitted to its own one-step attack: accuracies under PGD on a fixed batch, in [0, 1]."""

    seed: int
    epoch: int
    before: float
    after: float


class Matrix:
    """Outcomes by regime and column, over seeds.

    Args:
        regimes: rows.
        columns: columns that were measured.
        cells: by (regime id, column id) the outcomes of each seed, in the order of the seeds.
        seeds: of the trainings.
        diagnoses: by regime id those of each seed; a regime that lacks one has none.
        falls: by regime id what the monitor of catastrophic overfitting saw in the training of each seed that triggered
            it: seed, epoch, and the accuracy under PGD before and after.
    """

    def __init__(
        self,
        regimes: Sequence[Regime],
        columns: Sequence[Column],
        cells: dict[tuple[str, str], list[Outcomes]],
        seeds: Sequence[int],
        diagnoses: Mapping[str, Sequence[AttackCheckResults]] | None = None,
        falls: Mapping[str, Sequence[Fall]] | None = None,
    ) -> None:
        self.regimes, self.columns, self.cells, self.seeds = regimes, columns, cells, seeds
        self.diagnoses, self.falls = dict(diagnoses or {}), dict(falls or {})
        self.worst = worst_cases(columns)

    @property
    def every(self) -> list[str]:
        """Ids of the columns that were measured, and of the worst cases over them."""
        return [*(column.id for column in self.columns), *self.worst]

    @property
    def clean(self) -> Column:
        """The column of untouched images."""
        return next(c for c in self.columns if c.reading == "none" and isinstance(c.perturbation, Identity))

    def correct(self, regime: str, column: str) -> Table:
        """Return (seeds, n) with 1 where the answer is right; in a worst case, where it is right in every member."""
        members = self.worst.get(column)
        if members is not None:
            return np.min([self.correct(regime, member) for member in members], axis=0)
        return np.stack([found.correct for found in self.cells[regime, column]])

    def accuracy(self, regime: str, column: str) -> Interval:
        """Return the accuracy, resampled over images and seeds."""
        return share_interval(self.correct(regime, column))

    def difference(self, first: tuple[str, str], second: tuple[str, str]) -> Interval:
        """Return the accuracy of the first cell minus that of the second, on the same images."""
        return paired_difference(self.correct(*first), self.correct(*second))

    def combined(self, regime: str) -> Table:
        """Return (seeds, n): each image's accuracy averaged over the measured columns that are not transfer."""
        live = [c.id for c in self.columns if c.reading != "transfer"]
        return np.mean([self.correct(regime, column) for column in live], axis=0)

    def has(self, regime: str) -> bool:
        """Return whether there is such a row."""
        return any(found.id == regime for found in self.regimes)

    def examined(self, regime: str, column: str) -> Table:
        """Return `correct` of the images that the regime's diagnoses are of, (seeds, n)."""
        rows = [found.rows for found in self.diagnoses[regime]]
        return np.take_along_axis(self.correct(regime, column), np.stack(rows), axis=1)

    def checked(self, regime: str, kind: str, column: str) -> Table | None:
        """Return (seeds, n) with 1 where the answer is right under a further attack, or None where it was not made."""
        found = [diagnosis.right.get((kind, column)) for diagnosis in self.diagnoses.get(regime) or []]
        known = [right for right in found if right is not None]
        return np.stack(known).astype(np.float64) if known and len(known) == len(found) else None


def worst_cases(columns: Sequence[Column]) -> dict[str, tuple[str, ...]]:
    """Return the members of each worst case by its id: the adaptive attacks, and those of them in the same ball."""
    attacks = [column for column in columns if column.reading == ADAPTIVE]
    balls: dict[tuple[str, float], list[str]] = {}
    for column in attacks:
        found = ball(column.perturbation)
        if found is not None:
            balls.setdefault(found, []).append(column.id)
    cases = {f"{WORST}/{norm} {eps:.3g}": tuple(members) for (norm, eps), members in balls.items() if len(members) > 1}
    everything = tuple(column.id for column in attacks)
    if len(everything) > 1 and everything not in cases.values():
        cases[f"{WORST}/all"] = everything
    return cases
