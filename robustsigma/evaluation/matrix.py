"""The robustness matrix: per-image outcomes of regimes under conditions, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.checks import Soundness
from robustsigma.engine.metrics import Interval, holm, paired_difference, share_interval
from robustsigma.engine.perturbations import Identity
from robustsigma.evaluation.attack_checks import SEARCH, AttackCheckResults
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import ADAPTIVE, NO_ATTACK, TRANSFER, Condition, Regime
from robustsigma.evaluation.threat_model import ball, minimum_norm

Correct = NDArray[np.float64]  # (seeds, n), 1 where the prediction is correct
CONTROL = "clean/retrain"
WORST = "worst"


class OverfittingEvent(NamedTuple):
    """Catastrophic overfitting of a training: accuracies under PGD on a fixed batch, in [0, 1]."""

    seed: int
    epoch: int
    before: float
    after: float


@dataclass(frozen=True)
class SeedCurves:
    """Accuracy of one regime over the radius of one attack, at the radii that all seeds have.

    Attributes:
        eps: (E,) increasing; the first is 0.
        correct: (seeds, E, n), 1 where the prediction is correct.
        chance: accuracy of guessing.
        complete: whether the last ball includes every image.
    """

    eps: NDArray[np.float64]
    correct: NDArray[np.float64]
    chance: float
    complete: bool

    @property
    def reached(self) -> bool:
        """Whether the accuracy is at chance or below at the end."""
        return bool(self.correct[:, -1].mean() <= self.chance)

    @property
    def rises(self) -> bool:
        """Whether the accuracy rises significantly from one radius to the next."""
        steps = range(1, len(self.eps))
        return any(paired_difference(self.correct[:, k], self.correct[:, k - 1]).low > 0 for k in steps)


class Matrix:
    """Outcomes by regime and condition, over seeds.

    Args:
        regimes: rows; the first one is the base model.
        conditions: columns that were measured.
        cells: by (regime id, condition id) the outcomes of each seed, in the order of the seeds.
        seeds: seeds of the trainings; empty for models that the user provided.
        classes: number of classes.
        attack_checks: by regime id those of each seed; a regime may lack them.
        overfitting: by regime id, the catastrophic overfitting seen in its trainings.
    """

    def __init__(
        self,
        regimes: Sequence[Regime],
        conditions: Sequence[Condition],
        cells: dict[tuple[str, str], list[Outcomes]],
        seeds: Sequence[int],
        classes: int,
        attack_checks: Mapping[str, Sequence[AttackCheckResults]] | None = None,
        overfitting: Mapping[str, Sequence[OverfittingEvent]] | None = None,
    ) -> None:
        self.regimes, self.conditions, self.cells, self.seeds = regimes, conditions, cells, seeds
        self.classes = classes
        self.attack_checks, self.overfitting = dict(attack_checks or {}), dict(overfitting or {})
        self.worst = worst_cases(conditions)
        self._changes: dict[str, dict[tuple[str, str], tuple[Interval, float]]] = {}

    @property
    def base(self) -> str:
        """Id of the base model, against which transferred samples were made."""
        return self.regimes[0].id

    @property
    def all_ids(self) -> list[str]:
        """Ids of the conditions whose accuracy counts, and of the worst cases over them: no minimum-norm attacks."""
        return [*(each.id for each in self.conditions if not has_distances(each)), *self.worst]

    @property
    def clean(self) -> Condition:
        """The condition of clean images."""
        return next(
            c for c in self.conditions if c.attack_setting == NO_ATTACK and isinstance(c.perturbation, Identity)
        )

    @property
    def not_transferred(self) -> list[Condition]:
        """The conditions whose samples are made against the model under test, or against none; no minimum-norm ones."""
        return [each for each in self.conditions if each.attack_setting != TRANSFER and not has_distances(each)]

    def distances(self, regime: str, condition: str) -> Correct:
        """Return the distance at which a minimum-norm attack misled the network, infinite where none, (seeds, n)."""
        found = self.cells[regime, condition]
        return np.stack([np.where(each.correct > 0, np.inf, np.asarray(each.distance, np.float64)) for each in found])

    def correct(self, regime: str, condition: str) -> Correct:
        """Return (seeds, n), 1 where the prediction is correct; for a worst case, where it is under every member."""
        members = self.worst.get(condition)
        if members is not None:
            return np.min([self.correct(regime, member) for member in members], axis=0)
        return np.stack([found.correct for found in self.cells[regime, condition]])

    def accuracy(self, regime: str, condition: str) -> Interval:
        """Return the accuracy, with an interval over images and seeds."""
        return share_interval(self.correct(regime, condition))

    def difference(self, first: tuple[str, str], second: tuple[str, str]) -> Interval:
        """Return the accuracy of the first cell minus that of the second, on the same images."""
        return paired_difference(self.correct(*first), self.correct(*second))

    def changes(self, against: str) -> dict[tuple[str, str], tuple[Interval, float]]:
        """Return the difference of each regime from another model, with its p-value, by (regime, condition).

        All of them are one family: `holm` corrects the p-values for their number.
        """
        if against not in self._changes:
            keys = [(regime.id, condition) for regime in self.regimes if regime.id not in (self.base, against)
                    for condition in self.all_ids]  # fmt: skip
            found = [self.difference(key, (against, key[1])) for key in keys]
            self._changes[against] = dict(zip(keys, zip(found, holm(found), strict=True), strict=True))
        return self._changes[against]

    def combined(self, regime: str) -> Correct:
        """Return (seeds, n): each image's accuracy averaged over the conditions that are not transfer."""
        return np.mean([self.correct(regime, each.id) for each in self.not_transferred], axis=0)

    def has(self, regime: str) -> bool:
        """Return whether there is such a row."""
        return any(found.id == regime for found in self.regimes)

    def checked_images(self, regime: str, condition: str) -> Correct:
        """Return `correct` of the images that the regime's attack checks used, (seeds, n)."""
        rows = [found.rows for found in self.attack_checks[regime]]
        return np.take_along_axis(self.correct(regime, condition), np.stack(rows), axis=1)

    def check(self, regime: str, kind: str, condition: str) -> Correct | None:
        """Return (seeds, n), 1 where the prediction is correct under a further attack, or None without that check."""
        found = [checks.correct.get((kind, condition)) for checks in self.attack_checks.get(regime) or []]
        known = [correct for correct in found if correct is not None]
        return np.stack(known).astype(np.float64) if known and len(known) == len(found) else None

    def search(self, regime: str, condition: Condition) -> Correct | None:
        """Return `check` of a search without gradients in the ball of a condition, or None."""
        found = (self.check(regime, SEARCH, name) for name in self.same_ball(condition))
        return next((correct for correct in found if correct is not None), None)

    def same_ball(self, condition: Condition) -> list[str]:
        """Return the ids of the adaptive attacks in the same ball."""
        bounded = ball(condition.perturbation)
        adaptive = [each for each in self.conditions if each.attack_setting == ADAPTIVE]
        return [each.id for each in adaptive if bounded is not None and ball(each.perturbation) == bounded]

    def curves(self, regime: str, condition: str) -> SeedCurves | None:
        """Return the accuracy over the radius of an attack, or None where it was not measured."""
        checks = self.attack_checks.get(regime) or []
        found = [each.curves[condition] for each in checks if condition in each.curves]
        if not found or len(found) < len(checks):
            return None
        # A seed whose accuracy fell to chance sooner has fewer radii.
        eps = reduce(np.intersect1d, [curve.eps for curve in found])
        correct = np.stack([curve.correct[np.isin(curve.eps, eps)] for curve in found]).astype(np.float64)
        return SeedCurves(eps, correct, 1 / checks[0].classes, bool(eps[-1] >= found[0].max_eps))

    def soundness(self, regime: str) -> Soundness | None:
        """Return the checks of the outputs and gradients of a regime's models, over its seeds."""
        found = [checks.soundness for checks in self.attack_checks.get(regime) or []]
        if not found:
            return None
        return Soundness(
            sum(each.images for each in found),
            any(each.probabilities for each in found),
            any(each.random_outputs for each in found),
            sum(each.dead for each in found),
            any(each.batch_dependent for each in found),
        )


def has_distances(condition: Condition) -> bool:
    """Return whether a condition tells distances to the nearest error, as minimum-norm attacks do."""
    return minimum_norm(condition.perturbation) is not None


def worst_cases(conditions: Sequence[Condition]) -> dict[str, tuple[str, ...]]:
    """Return the members of each worst case by its id: the adaptive attacks, and those of them in the same ball.

    Minimum-norm attacks are in none, as they have no radius.
    """
    attacks = [each for each in conditions if each.attack_setting == ADAPTIVE and not has_distances(each)]
    balls: dict[tuple[str, float], list[str]] = {}
    for each in attacks:
        found = ball(each.perturbation)
        if found is not None:
            balls.setdefault(found, []).append(each.id)
    cases = {f"{WORST}/{norm} {eps:.3g}": tuple(members) for (norm, eps), members in balls.items() if len(members) > 1}
    everything = tuple(each.id for each in attacks)
    if len(everything) > 1 and everything not in cases.values():
        cases[f"{WORST}/all"] = everything
    return cases
