"""The standard deviation of the Gaussian noise to train on, swept on images held out of test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from robustsigma.engine import validation
from robustsigma.engine.metrics import mean_interval, paired_difference, share_interval
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.engine.perturbations import GaussianNoise
from robustsigma.engine.precision import deterministic
from robustsigma.evaluation._held_out import held_out
from robustsigma.evaluation.given import resolve_settings
from robustsigma.evaluation.lightning import quiet
from robustsigma.evaluation.matrix import Table
from robustsigma.evaluation.progress import RunProgress
from robustsigma.evaluation.run import BASE, TRANSFER, Regime, Run, kept
from robustsigma.evaluation.settings import Evaluation, Sweep
from robustsigma.evaluation.store import Store
from robustsigma.files import init_run_dir, read_settings, write_atomically
from robustsigma.processes import Processes

FOLDER = "sweep"
Which = tuple[str, str]


@dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        settings: of the evaluation, each swept regime with its best standard deviation.
        entries: the table of each swept regime, in plain JSON types.
        table: the file that has them, or None without a sweep.
        base: the folder of the base model that the sweep started from, where it is that of the evaluation as well.
    """

    settings: Evaluation
    entries: list[dict[str, Any]]
    table: Path | None = None
    base: Store | None = None


class SweepRun(Run):
    """Every trial of a sweep, in one folder: each standard deviation in each swept regime, for the first seed.

    Args:
        settings: of the evaluation.
        sweep: what is tried.
        out: the folder. Trials that an earlier run finished there are not done again; others may be added.
        console: where progress is shown.
        processes: that share the trials.
        allow: as in `Run`.
    """

    def __init__(
        self,
        settings: Evaluation,
        sweep: Sweep,
        out: Path,
        console: Console,
        processes: Processes | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        self.sweep, self.source = sweep, held_out(settings.source, sweep.images)
        bare = dataclasses.replace(settings.retraining, retrain={}, on_the_fly={})  # other regimes do not matter here
        changed: dict[str, Any] = {"source": self.source, "retraining": bare, "seeds": settings.each_seed[:1]}
        changed |= {"sweep": None, "test_images": None}
        super().__init__(dataclasses.replace(settings, **changed), out, console, processes, allow)
        self.columns = [column for column in self.columns if column.reading != TRANSFER]
        self.trials = {which: {std: _trial(which, std) for std in sweep.stds} for which in settings.swept}

    def run(self) -> None:
        """Train and judge what is missing."""
        (seed,) = self.settings.each_seed
        trials = [trial for found in self.trials.values() for trial in found.values()]
        with quiet(), RunProgress(1 + 2 * len(trials), self.console, self.processes) as progress:
            for trial in self.processes.share("trials", [self.regimes[0], *trials]):
                if trial.id == BASE:
                    self.finish_training(seed, trial, "sweep of std, base", progress)
                    continue
                title = f"sweep of std, {trial.id.replace('_', ' ')}"
                self.finish_training(seed, trial, title, progress)
                self.finish_tests(seed, trial, title, progress)
            self.processes.barrier("trials")

    def best(self) -> dict[Which, float]:
        """Return the best standard deviation of each swept regime."""
        return {which: best_of(self._right(which), self.sweep) for which in self.trials}

    def entries(self) -> list[dict[str, Any]]:
        """Return the table of each swept regime, in plain JSON types."""
        return [self._entry(which, std) for which, std in self.best().items()]

    def _right(self, which: Which) -> dict[float, Table]:
        """Return by standard deviation (columns, n), 1 where the answer is right."""
        seed = self.settings.each_seed[0]
        return {
            std: np.stack([self.store.read_outcomes(seed, trial.id, column.id).correct for column in self.columns])
            for std, trial in self.trials[which].items()
        }

    def _entry(self, which: Which, best: float) -> dict[str, Any]:
        right, (seed,), (protocol, name) = self._right(which), self.settings.each_seed, which
        judged = {std: _judged(found, self.sweep) for std, found in right.items()}
        rows = [
            {
                "std": std,
                "best": std == best,
                "score": as_dict(mean_interval(judged[std])),
                "behind": None if std == best else as_dict(paired_difference(judged[std], judged[best])),
                "accuracy": {c.id: as_dict(share_interval(of)) for c, of in zip(self.columns, right[std], strict=True)},
                "seconds": self.store.notes(seed, self.trials[which][std].id)["seconds"],
            }
            for std in sorted(right)
        ]
        names = {"regime": f"{name}/{protocol}", "name": name, "protocol": protocol, "seed": seed, "by": self.sweep.by}
        columns = [{"id": c.id, "name": c.name, "reading": c.reading} for c in self.columns]
        of = {"images": right[best].shape[1], "held_out": self.source.part}
        return {**names, **of, "columns": columns, "best": best, "rows": rows}


@deterministic()
def sweep_noise(
    settings: Evaluation,
    out: Path,
    console: Console,
    processes: Processes | None = None,
    *,
    allow: Sequence[str] = (),
) -> Swept:
    """Finish the sweep of an evaluation in the subfolder `sweep`, whose `table.json` then has its tables.

    Args:
        settings: of the evaluation. Without a sweep they are only completed.
        out: folder of the evaluation.
        console: where progress is shown.
        processes: that share the trials; this one alone if None.
        allow: dotted paths that a command line allowed: the folder is of their source as well.

    Raises:
        ValueError: settings that cannot be run (see `completed`); or `out` holds an evaluation of others, or of a
            standard deviation that is not swept.
    """
    settings = resolve_settings(settings)
    if settings.sweep is None:
        return Swept(settings, [])
    sweep, processes = settings.sweep, processes or Processes()

    def begin() -> SweepRun:
        _refuse_others(settings, sweep, out, allow)
        return SweepRun(settings, sweep, out / FOLDER, console, processes, allow)

    run = processes.main_process_first("sweep", begin)
    run.run()
    entries, table = run.entries(), out / FOLDER / "table.json"
    if processes.first:
        write_atomically(table, json.dumps(entries, indent=1, allow_nan=False).encode())
    return Swept(_with(settings, run.best()), entries, table, run.store if run.source.part == "val" else None)


def best_of(right: Mapping[float, Table], sweep: Sweep) -> float:
    """Return the best standard deviation.

    Args:
        right: by standard deviation (columns, n), 1 where the answer is right.
        sweep: says by what; the smallest wins a tie.
    """
    # Counts, as means of equal counts may differ in their last bit.
    counted = {std: int(table.sum() if sweep.by == "mean" else table.min(axis=0).sum()) for std, table in right.items()}
    return max(sorted(counted), key=lambda std: counted[std])


def _judged(right: Table, sweep: Sweep) -> Table:
    """Return for each image what the mean of which decides, (n,)."""
    found: Table = right.mean(axis=0) if sweep.by == "mean" else right.min(axis=0)
    return found


def _trial(which: Which, std: float) -> Regime:
    protocol, name = which
    return Regime(f"{name}/{protocol}/{float(std)!r}", name, protocol, GaussianNoise(std))


def _with(settings: Evaluation, stds: Mapping[Which, float]) -> Evaluation:
    """Return the settings with other standard deviations in some regimes."""
    of: dict[str, Any] = {p: dict(getattr(settings.retraining, p)) for p in ("retrain", "on_the_fly")}
    for (protocol, name), std in stds.items():
        of[protocol][name] = GaussianNoise(std)
    return dataclasses.replace(settings, retraining=dataclasses.replace(settings.retraining, **of))


def _refuse_others(settings: Evaluation, sweep: Sweep, out: Path, allow: Sequence[str]) -> None:
    """Refuse a folder that the evaluation could not go on in, whatever is best: now, not after hours of a sweep."""
    if out.exists() and not out.is_dir():
        raise validation.fail("out", "a folder", f"the file {out}")
    before = read_settings(out)
    if before is None:
        return
    retraining = before.get("retraining") or {}
    possible: dict[Which, float] = {}
    for protocol, name in settings.swept:
        own = ((retraining.get(protocol) or {}).get(name) or {}).get("std")
        possible[protocol, name] = next((std for std in sweep.stds if std == own), sweep.stds[0])
    init_run_dir(out, kept(_with(settings, possible), allow))
