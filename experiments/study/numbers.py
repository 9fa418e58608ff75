"""The numbers of a table, from per-image outcomes: cells, paired differences, costs and flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robustsigma import SigmaSample
from robustsigma.engine.metrics import mean_interval, paired_difference
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation import results
from robustsigma.evaluation.flags import run_flags
from robustsigma.evaluation.matrix import Correct, Matrix
from robustsigma.evaluation.plan import TRANSFER, Regime
from study.cost import Cost
from study.setup import CLEAN, GAUSSIAN, MIXTURE, REFERENCE, WITHOUT_SIGMA, Plan
from study.trainings import Trainings

COMBINED, OTHERS = "combined", "others"


def table(
    run: Trainings, plans: Sequence[Plan], costs: Mapping[str, Cost], sweep: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return a table in plain JSON types.

    Args:
        run: trainings whose rows are finished.
        plans: rows, in order.
        costs: measured costs by the name of a row.
        sweep: results of the sweep of the Gaussian noise.
    """
    matrix = run.matrix(plans)
    swept = [{**entry, "regime": plan.id} for entry in sweep for plan in plans if plan.name == GAUSSIAN]
    return {
        "seeds": list(matrix.seeds),
        "rows": [_row(run, regime, costs) for regime in matrix.regimes],
        "cells": list(_cells(run, matrix)),
        "differences": list(_differences(matrix)),
        "checks": results.checks(matrix),
        "flags": run_flags(matrix, swept),
    }


def _row(run: Trainings, regime: Regime, costs: Mapping[str, Cost]) -> dict[str, Any]:
    notes = run.notes(regime)
    row: dict[str, Any] = {"id": regime.id, "name": regime.name}
    row["seconds"] = float(np.median([note["seconds"] for note in notes]))
    if not isinstance(regime, Plan):
        return {**row, "settings": f"{run.settings.training.epochs} epochs, the start of all others"}
    made = {key: sum(note["augmentation"][key] for note in notes) for key in notes[0]["augmentation"]}
    training, cost = regime.training, costs.get(regime.name)
    steps = training.steps(run.training_images, run.settings.retraining.batch_size)
    again = training.epochs if training.samples else 1
    return {
        **row,
        "settings": str(training),
        "epochs": training.epochs,
        "steps": training.epochs * steps,
        "augmented": again * made["samples"] / len(notes),
        "cost": None if cost is None else cost.of(training.epochs, steps),
        "converged": made["converged"] / made["attempted"] if made["attempted"] else None,
        "walk_steps": made["steps"] / made["attempted"] if made["attempted"] else None,
        "hit_rate": made["hits"] / made["requested"] if made["requested"] else None,
    }


def _cells(run: Trainings, matrix: Matrix) -> Iterator[dict[str, Any]]:
    """Yield every cell, with chance level and the share of walks that did not converge."""
    chance = 1 / len(run.settings.dataset.classes)
    names = {regime.id: regime.name for regime in matrix.regimes}
    for entry in results.cell_entries(matrix):
        converged = entry.get("converged")
        yield {
            **{key: value for key, value in entry.items() if key not in ("regime", "confidence", "quality")},
            "row": names[entry["regime"]],
            "chance": chance,
            "above_chance": entry["accuracy"]["low"] > chance,
            "unconverged": None if converged is None else 1 - converged,
        }
    for regime in matrix.regimes:
        for name, correct in means(matrix, regime.id).items():
            of = {"row": regime.name, "condition": name, "n": correct.shape[1], "seeds": correct.shape[0]}
            yield {**of, "accuracy": as_dict(mean_interval(correct)), "chance": chance, "flags": []}


def means(matrix: Matrix, regime: str) -> dict[str, Correct]:
    """Return the accuracy of each image (seeds, n), averaged over the conditions that are not transfer.

    The second mean also leaves out SIGMA's condition: training on SIGMA samples stops the walks that measure it.
    """
    others = [
        c.id for c in matrix.conditions if c.attack_setting != TRANSFER and not isinstance(c.perturbation, SigmaSample)
    ]
    return {
        COMBINED: matrix.combined(regime),
        OTHERS: np.mean([matrix.correct(regime, name) for name in others], axis=0),
    }


def _differences(matrix: Matrix) -> Iterator[dict[str, Any]]:
    """Yield the differences of rows, paired over images and over trainings from the same base model."""
    rows = {regime.name: regime.id for regime in matrix.regimes if isinstance(regime, Plan)}
    others = (CLEAN, GAUSSIAN, "fgsm", REFERENCE)
    pairs = [(name, against) for against in others if against in rows for name in rows if name != against]
    if MIXTURE in rows and WITHOUT_SIGMA in rows:
        pairs.append((MIXTURE, WITHOUT_SIGMA))
    for name, against in pairs:
        for column in matrix.all_ids:
            found = matrix.difference((rows[name], column), (rows[against], column))
            yield {"row": name, "against": against, "condition": column, **as_dict(found)}
        second = means(matrix, rows[against])
        for condition, first in means(matrix, rows[name]).items():
            found = paired_difference(first, second[condition])
            yield {"row": name, "against": against, "condition": condition, **as_dict(found)}
