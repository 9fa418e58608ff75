"""From per-image outcomes to the numbers of the report: intervals, paired differences, flags and findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.metrics import Interval, mean_interval, paired_difference
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.run import ADAPTIVE, BASE, Column, Regime

Table = NDArray[np.float64]
CONTROL = "clean/retrain"
_MANY_UNCONVERGED = 0.05


class Matrix:
    """Outcomes by regime and column, over seeds.

    Args:
        regimes: rows.
        columns: columns.
        cells: by (regime id, column id) the outcomes of each seed, in the order of the seeds.
        seeds: of the trainings.
    """

    def __init__(
        self,
        regimes: Sequence[Regime],
        columns: Sequence[Column],
        cells: dict[tuple[str, str], list[Outcomes]],
        seeds: Sequence[int],
    ) -> None:
        self.regimes, self.columns, self.cells, self.seeds = regimes, columns, cells, seeds

    def correct(self, regime: str, column: str) -> Table:
        """Return (seeds, n) with 1 where the answer is right."""
        return np.stack([found.correct for found in self.cells[regime, column]])

    def accuracy(self, regime: str, column: str) -> Interval:
        """Return the accuracy, resampled over images and seeds."""
        return mean_interval(self.correct(regime, column))

    def difference(self, first: tuple[str, str], second: tuple[str, str]) -> Interval:
        """Return the accuracy of the first cell minus that of the second, on the same images."""
        return paired_difference(self.correct(*first), self.correct(*second))

    def combined(self, regime: str) -> Table:
        """Return (seeds, n): each image's accuracy averaged over the columns that are not transfer."""
        live = [c.id for c in self.columns if c.reading != "transfer"]
        return np.mean([self.correct(regime, column) for column in live], axis=0)

    def has(self, regime: str) -> bool:
        """Return whether there is such a row."""
        return any(found.id == regime for found in self.regimes)


def cell_entries(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every cell as the report takes it."""
    entries = []
    for regime in matrix.regimes:
        for column in matrix.columns:
            found = matrix.cells[regime.id, column.id]
            searched = np.concatenate([o.searched for o in found])
            converged = np.concatenate([o.converged for o in found])[searched]
            steps = np.concatenate([o.steps for o in found])[searched]
            entries.append(
                {
                    "regime": regime.id,
                    "condition": column.id,
                    "n": len(found[0].indices),
                    "seeds": len(found),
                    "accuracy": as_dict(matrix.accuracy(regime.id, column.id)),
                    "confidence": _mean(np.stack([o.confidences for o in found])),
                    "converged": float(converged.mean()) if searched.any() else None,
                    "steps": float(steps.mean()) if searched.any() else None,
                    "quality": quality(found),
                    "flags": cell_flags(matrix, regime, column),
                }
            )
    return entries


def quality(found: Sequence[Outcomes]) -> dict[str, dict[str, float]]:
    """Return how far the images of a cell lie from the untouched ones."""
    return {name: _mean(np.stack([getattr(o, name) for o in found])) for name in ("rmse", "linf", "ssim")}


def _mean(values: NDArray[Any]) -> dict[str, float]:
    return as_dict(mean_interval(values))


def differences(matrix: Matrix) -> list[dict[str, Any]]:
    """Return what each regime changed, against the base model and against the control."""
    entries = []
    for against in (BASE, CONTROL):
        if not matrix.has(against):
            continue
        for regime in matrix.regimes:
            if regime.id in (BASE, against):
                continue
            for column in matrix.columns:
                found = matrix.difference((regime.id, column.id), (against, column.id))
                entries.append({"regime": regime.id, "against": against, "condition": column.id, **as_dict(found)})
    return entries


def cell_flags(matrix: Matrix, regime: Regime, column: Column) -> list[dict[str, str]]:
    """Return what speaks against believing a cell."""
    flags = []
    found = matrix.cells[regime.id, column.id]
    searched = np.concatenate([o.searched for o in found])
    missed = searched & ~np.concatenate([o.converged for o in found])
    if searched.any() and missed.sum() > _MANY_UNCONVERGED * searched.sum():
        message = (
            f"More than {_MANY_UNCONVERGED:.0%} of the searches stopped before the confidence was gone: "
            "samples are weaker than they claim, and the accuracy is an upper bound."
        )
        flags.append({"code": "unconverged", "message": message})
    if column.reading == "none":
        return flags
    clean = next(c.id for c in matrix.columns if c.reading == "none" and type(c.perturbation).__name__ == "Identity")
    if matrix.difference((regime.id, column.id), (regime.id, clean)).low > 0:
        message = "Attacked images are answered better than clean ones: the attack leaks the label."
        flags.append({"code": "label_leak", "message": message})
    if column.reading == ADAPTIVE and regime.id != BASE:
        moved = f"{column.name}/transfer"
        if matrix.difference((regime.id, column.id), (regime.id, moved)).low > 0:
            message = (
                "Samples made against another model work better than those made against this one: its gradients or "
                "its confidence are masked."
            )
            flags.append({"code": "masked", "message": message})
    return flags


def run_flags(matrix: Matrix) -> list[dict[str, str]]:
    """Return what speaks against believing the run as a whole."""
    flags = []
    kinds = {type(column.perturbation).__name__ for column in matrix.columns}
    if len(matrix.seeds) == 1:
        message = "Every model was trained once: the intervals are over images, and say nothing of other trainings."
        flags.append({"code": "1 seed", "message": message})
    if "FGSM" in kinds and "PGD" not in kinds:
        message = "FGSM is the only gradient attack here. One step says little of how robust a model is."
        flags.append({"code": "single_step", "message": message})
    stds = {getattr(regime.perturbation, "std", None) for regime in matrix.regimes} - {None}
    if len(stds) == 1:
        message = "One strength of Gaussian noise was trained on, and it was not swept: another might do better."
        flags.append({"code": "std_not_swept", "message": message})
    return flags


def augmentation(matrix: Matrix, notes: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was made for training, by regime and seed."""
    entries = []
    for regime in matrix.regimes:
        for seed in matrix.seeds:
            made = notes[regime.id, seed]["augmentation"]
            if made["samples"]:
                searched = made["searched"]
                entries.append(
                    {
                        "regime": regime.id,
                        "seed": seed,
                        "samples": made["samples"],
                        "seconds": made["seconds"],
                        "converged": made["converged"] / searched if searched else None,
                        "steps": round(made["steps"] / searched, 1) if searched else None,
                    }
                )
    return entries


def per_seed(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the accuracy of each training by itself."""
    return [
        {"seed": seed, "regime": regime.id, "condition": column.id, "accuracy": float(found.correct.mean())}
        for regime in matrix.regimes
        for column in matrix.columns
        for seed, found in zip(matrix.seeds, matrix.cells[regime.id, column.id], strict=True)
    ]
