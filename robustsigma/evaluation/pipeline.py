"""The evaluation from settings to report."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from robustsigma.engine.device import best_device
from robustsigma.engine.precision import deterministic
from robustsigma.evaluation import results as numbers
from robustsigma.evaluation.curves import curve_entries
from robustsigma.evaluation.diagnosis import AttackCheckResults
from robustsigma.evaluation.findings import findings, title
from robustsigma.evaluation.flags import run_flags
from robustsigma.evaluation.illustrations import Pictures, default_attributors, illustrate
from robustsigma.evaluation.matrix import WORST, Matrix
from robustsigma.evaluation.noise_sweep import Swept, sweep_noise
from robustsigma.evaluation.progress import Step
from robustsigma.evaluation.run import BASE, Column, Regime, Run
from robustsigma.evaluation.settings import Evaluation, describe
from robustsigma.evaluation.threat import parameters, threat
from robustsigma.files import write_atomically
from robustsigma.processes import Processes
from robustsigma.provenance import Provenance
from robustsigma.report import RobustnessReport, print_table, write_report


@deterministic()
def evaluate(
    settings: Evaluation,
    out: str | Path,
    *,
    console: Console | None = None,
    command: str | None = None,
    allow: Sequence[str] = (),
) -> RobustnessReport:
    """Train and test every regime under every condition, after the sweep if there is one, and write the report.

    Where a launcher such as torchrun has started several processes that make the same call, they share the regimes.

    Args:
        settings: what to evaluate.
        out: folder of `report.html`, `results.json`, `figures/`, and of everything finished on the way. Called again
            with the same settings, it goes on where it stopped; more seeds may be added.
        console: where progress and the table are shown; standard output if None.
        command: line that makes the report again, which the report then shows.
        allow: dotted paths of your code whose source the folder is bound to, beside the settings.

    Returns:
        The report: the path of the HTML file, and its results.

    Raises:
        ValueError: settings or a folder that cannot be used.
    """
    provenance = Provenance(command)
    console, processes = console or Console(), Processes.join()
    swept = sweep_noise(settings, Path(out), console, processes, allow=allow)

    def begin() -> Run:
        run = Run(swept.settings, Path(out), console, processes, allow)
        if swept.base is not None:
            run.store.adopt_model(settings.each_seed[0], BASE, swept.base)
        return run

    run = processes.main_process_first("evaluation", begin)
    pictures: list[Pictures] = []
    run.run_and(("pictures for the report", lambda step: pictures.append(_pictures(run, step))))
    if processes.first:
        _report(run, swept, provenance, Path(out), *pictures[0])
    processes.barrier("report")
    return RobustnessReport(Path(out) / "report.html", json.loads((Path(out) / "results.json").read_text("utf-8")))


def _report(
    run: Run,
    swept: Swept,
    provenance: Provenance,
    out: Path,
    sections: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> None:
    """Write the results of a finished run, with the sections and arrays of its pictures, and show them."""
    found = collect(run, swept.entries)
    found["run"] = provenance.record()
    found.update(sections)
    write_atomically(out / "results.json", json.dumps(found, indent=1, allow_nan=False).encode())
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(out / "arrays.npz", buffer.getvalue())
    write_report(found, arrays, out)
    print_table(found, run.console)


def collect(run: Run, sweep: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return the results of a finished run in plain JSON types (schema 1), without pictures.

    Args:
        run: finished.
        sweep: tables of the sweep that chose its Gaussian noise.
    """
    settings, store = run.settings, run.store
    cells = {
        (regime.id, column.id): [store.read_outcomes(seed, regime.id, column.id) for seed in settings.each_seed]
        for regime in run.regimes
        for column in run.columns
    }
    notes = {(r.id, seed): store.notes(seed, r.id) for r in run.regimes for seed in settings.each_seed}
    falls = {regime.id: numbers.falls({s: notes[regime.id, s] for s in settings.each_seed}) for regime in run.regimes}
    matrix = Matrix(run.regimes, run.columns, cells, list(settings.each_seed), _diagnoses(run), falls)
    made = numbers.augmentation(matrix, notes)
    source, tried = settings.source, {entry["regime"]: len(entry["rows"]) for entry in sweep}
    return {
        "schema": 1,
        "settings": describe(settings),
        "seeds": list(settings.each_seed),
        "dataset": {
            "name": type(source).__name__,
            "classes": list(source.classes),
            "shape": list(source.shape),
            "train": len(source.split("train")) if "train" in source.splits else 0,  # type: ignore[arg-type]
            "test": len(cells[BASE, run.columns[0].id][0].indices),
        },
        "conditions": [_condition(column, cells[BASE, column.id]) for column in run.columns]
        + [_worst_case(matrix, name) for name in matrix.worst],
        "regimes": [
            _regime(
                regime, settings, [notes[regime.id, s]["seconds"] for s in settings.each_seed], tried.get(regime.id)
            )
            for regime in run.regimes
        ],
        "cells": numbers.cell_entries(matrix),
        "differences": numbers.differences(matrix),
        "per_seed": numbers.per_seed(matrix) if len(settings.each_seed) > 1 else [],
        "checks": numbers.checks(matrix),
        "networks": numbers.networks(matrix),
        "curves": curve_entries(matrix),
        "augmentation": made,
        "sweep": list(sweep),
        "flags": run_flags(matrix, sweep, made),
        "findings": findings(matrix, len(source.classes)),
    }


def _diagnoses(run: Run) -> dict[str, list[AttackCheckResults]]:
    """Return the diagnoses of every regime that has them for all seeds."""
    found = {r.id: [run.diagnosis(seed, r) for seed in run.settings.each_seed] for r in run.regimes}
    return {name: [one for one in each if one is not None] for name, each in found.items() if None not in each}


def _condition(column: Column, base: list[Any]) -> dict[str, Any]:
    shown = {"id": column.id, "name": column.name, "reading": column.reading, "settings": repr(column.perturbation)}
    said = {
        "threat": dataclasses.asdict(threat(column.perturbation, column.reading)),
        "parameters": parameters(column.perturbation),
    }
    moved = column.reading != "transfer" and any(o.linf.any() for o in base)
    return {**shown, **said, "quality": numbers.quality(base) if moved else {}}


def _worst_case(matrix: Matrix, name: str) -> dict[str, Any]:
    names = {column.id: title(column.name) for column in matrix.columns}
    members = matrix.worst[name]
    said = f"correct under each of {', '.join(names[member] for member in members)} (adaptive)"
    return {
        "id": name,
        "name": name.removeprefix(f"{WORST}/"),
        "reading": WORST,
        "settings": said,
        "members": list(members),
        "quality": {},
    }


def _regime(regime: Regime, settings: Evaluation, seconds: list[float], tried: int | None) -> dict[str, Any]:
    again = settings.retraining
    if regime.protocol == "none":
        epochs = settings.training.epochs
        text = f"{settings.architecture.name}, {f'{epochs} epochs' if epochs else 'as it was given'}"
    elif regime.protocol == "retrain":
        text = f"{again.epochs} epochs on the training images and {again.samples} samples of {regime.perturbation!r}"
    else:
        text = f"{again.epochs} epochs, {again.share:.0%} of each batch through {regime.perturbation!r}"
    if tried:
        text += f", the best std of {tried}"
    shown = {"id": regime.id, "name": regime.name, "protocol": regime.protocol, "settings": text}
    return {**shown, "seconds": float(np.mean(seconds))}


def _pictures(run: Run, step: Step) -> Pictures:
    """Return examples, a path and explanations by the first seed's base model."""
    settings = run.settings
    classifier = run.model(settings.each_seed[0], BASE).classifier.eval().to(best_device())
    dataset = settings.source.split("test")
    attributors = default_attributors(run.columns)
    return illustrate(classifier, dataset, len(settings.source.classes), run.columns, attributors, step)
