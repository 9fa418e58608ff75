"""From per-image outcomes to the numbers of the report: intervals, paired differences and flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.engine.metrics import mean_interval, paired_difference
from robustsigma.engine.metrics.calibration import calibration_error
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation.diagnosis import NOISE, TWICE
from robustsigma.evaluation.flags import cell_flags, searched, soundness
from robustsigma.evaluation.matrix import CONTROL, Fall, Matrix
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.run import ADAPTIVE, BASE, TRANSFER, Regime


def cell_entries(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every cell as the report takes it; a worst case has an accuracy alone."""
    entries = []
    for regime in matrix.regimes:
        for column in matrix.columns:
            found = matrix.cells[regime.id, column.id]
            walked = np.concatenate([o.searched for o in found])
            converged = np.concatenate([o.converged for o in found])[walked]
            steps = np.concatenate([o.steps for o in found])[walked]
            entries.append(
                {
                    **_accuracy(matrix, regime, column.id),
                    "confidence": _mean(np.stack([o.confidences for o in found])),
                    "calibration": calibration(found),
                    "converged": float(converged.mean()) if walked.any() else None,
                    "steps": float(steps.mean()) if walked.any() else None,
                    "quality": quality(found),
                    "flags": cell_flags(matrix, regime, column),
                }
            )
        entries += [{**_accuracy(matrix, regime, name), "flags": []} for name in matrix.worst]
    return entries


def _accuracy(matrix: Matrix, regime: Regime, column: str) -> dict[str, Any]:
    seeds, n = matrix.correct(regime.id, column).shape
    names = {"regime": regime.id, "condition": column, "n": n, "seeds": seeds}
    return {**names, "accuracy": as_dict(matrix.accuracy(regime.id, column))}


def calibration(found: Sequence[Outcomes]) -> dict[str, float] | None:
    """Return the expected calibration error of a cell; None where an older version kept no confidences for it."""
    top = np.stack([o.top for o in found])
    return as_dict(calibration_error(top, np.stack([o.correct for o in found]))) if np.isfinite(top).all() else None


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
            for column in matrix.every:
                found = matrix.difference((regime.id, column), (against, column))
                entries.append({"regime": regime.id, "against": against, "condition": column, **as_dict(found)})
    return entries


def checks(matrix: Matrix) -> list[dict[str, Any]]:
    """Return each adaptive attack beside what it must be stronger than, on the images of the diagnoses.

    `accuracy` is that of the attack on them; every other part has the accuracy under what was done instead, and the
    paired `difference` attack minus other, which is above zero where the other is the stronger.
    """
    entries = []
    for regime in matrix.regimes:
        for column in matrix.columns:
            if column.reading != ADAPTIVE or not matrix.diagnoses.get(regime.id):
                continue
            own = matrix.examined(regime.id, column.id)
            others = {kind: matrix.checked(regime.id, kind, column.id) for kind in (TWICE, NOISE)}
            others["search"] = searched(matrix, regime.id, column)
            if regime.id != BASE:
                others["transfer"] = matrix.examined(regime.id, f"{column.name}/{TRANSFER}")
            parts = {
                kind: {"accuracy": float(right.mean()), "difference": as_dict(paired_difference(own, right))}
                for kind, right in others.items()
                if right is not None
            }
            names = {"regime": regime.id, "condition": column.id, "n": own.shape[1]}
            entries.append({**names, "accuracy": float(own.mean()), **parts})
    return entries


def networks(matrix: Matrix) -> list[dict[str, Any]]:
    """Return what each regime's models are like: the share of dead gradients, and what their outputs are."""
    entries = []
    for regime in matrix.regimes:
        found = soundness(matrix, regime.id)
        if found is not None:
            entries.append(
                {
                    "regime": regime.id,
                    "images": found.images,
                    "dead": found.dead / found.images,
                    "random_outputs": found.random_outputs,
                    "probabilities": found.probabilities,
                    "batch_dependent": found.batch_dependent,
                }
            )
    return entries


def falls(notes: dict[int, dict[str, Any]]) -> list[Fall]:
    """Return the first fall in each seed's training that its monitor of catastrophic overfitting triggered at."""
    found = []
    for seed, note in notes.items():
        checks = note.get("overfitting", [])  # a folder of an older version has none
        triggered = next((place for place, check in enumerate(checks) if check["triggered"]), None)
        if triggered is not None:
            before = max(check["probe"] for check in checks[:triggered])
            found.append(Fall(seed, checks[triggered]["epoch"], before, checks[triggered]["probe"]))
    return found


def augmentation(matrix: Matrix, notes: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was made for training, by regime and seed."""
    entries = []
    for regime in matrix.regimes:
        for seed in matrix.seeds:
            made = notes[regime.id, seed]["augmentation"]
            if made["samples"]:
                attempted = made["attempted"]
                entries.append(
                    {
                        "regime": regime.id,
                        "seed": seed,
                        "samples": made["samples"],
                        "seconds": made["seconds"],
                        "converged": made["converged"] / attempted if attempted else None,
                        "steps": round(made["steps"] / attempted, 1) if attempted else None,
                        "bank": _bank(made),
                    }
                )
    return entries


def _bank(made: dict[str, Any]) -> dict[str, float] | None:
    """Return how a cache of SIGMA samples was used, as shares of the requests, and the mean age in epochs."""
    requested, hits = made.get("requested", 0), made.get("hits", 0)
    if not requested:
        return None
    shares = {name: made[name] / requested for name in ("expired", "stale")}
    return {"hit_rate": hits / requested, "mean_age": made["ages"] / hits if hits else 0.0, **shares}


def per_seed(matrix: Matrix) -> list[dict[str, Any]]:
    """Return the accuracy of each training by itself."""
    return [
        {"seed": seed, "regime": regime.id, "condition": column, "accuracy": float(correct.mean())}
        for regime in matrix.regimes
        for column in matrix.every
        for seed, correct in zip(matrix.seeds, matrix.correct(regime.id, column), strict=True)
    ]
