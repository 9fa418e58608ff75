"""Sweep of the standard deviation of Gaussian training noise, on images held out of the test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from robustsigma.engine import validation
from robustsigma.engine.metrics import mean_interval, paired_difference, share_interval
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.engine.network_state import deterministic
from robustsigma.engine.perturbations import GaussianNoise
from robustsigma.evaluation._held_out import held_out
from robustsigma.evaluation.matrix import Correct, has_distances
from robustsigma.evaluation.plan import TRANSFER, Regime, fingerprint
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.settings import Checks, Evaluation, Sweep
from robustsigma.evaluation.store import RobustnessStore
from robustsigma.runs.directory import init_run_dir, read_settings
from robustsigma.runs.files import write_json
from robustsigma.runs.ranks import WHOLE, Phases, Ranks

FOLDER = "sweep"
Swept = tuple[str, str]  # protocol and name of a regime


@dataclass(frozen=True)
class SweepResults:
    """Results of a sweep.

    Attributes:
        settings: settings of the evaluation, each swept regime with its best standard deviation.
        entries: the table of each swept regime, in plain JSON types.
        table: the file that has them, or None without a sweep.
        base: files of the base model that the sweep started from, if the evaluation starts from the same one.
    """

    settings: Evaluation
    entries: list[dict[str, Any]]
    table: Path | None = None
    base: RobustnessStore | None = None


class SweepRun(RobustnessRun):
    """All trials of a sweep in one folder: each standard deviation in each swept regime, for the first seed.

    Args:
        settings: settings of the evaluation.
        sweep: what is tried.
        out: the folder. Trials that an earlier run finished there are not repeated; others may be added.
        console: where progress is shown.
        ranks: processes that share the trials.
        allow: as in `RobustnessRun`.
    """

    def __init__(
        self,
        settings: Evaluation,
        sweep: Sweep,
        out: Path,
        console: Console,
        ranks: Ranks | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        self.sweep, self.held_out = sweep, held_out(settings.dataset, sweep.images)
        bare = dataclasses.replace(settings.retraining, retrain={}, on_the_fly={})  # other regimes do not matter here
        changed: dict[str, Any] = {"dataset": self.held_out, "retraining": bare, "seeds": settings.each_seed[:1]}
        changed |= {"sweep": None, "test_images": None, "checks": Checks(images=0)}
        super().__init__(dataclasses.replace(settings, **changed), out, console, ranks, allow)
        self.conditions = [
            each for each in self.conditions if each.attack_setting != TRANSFER and not has_distances(each)
        ]
        self.seed = self.settings.each_seed[0]
        self.trials = {which: {std: _trial(which, std) for std in sweep.stds} for which in settings.swept}

    @property
    def rows(self) -> list[tuple[int, Regime]]:
        """The base model and every trial, which are trained."""
        return [(self.seed, self.regimes[0]), *self.tested]

    @property
    def tested(self) -> list[tuple[int, Regime]]:
        """Every trial."""
        return [(self.seed, trial) for found in self.trials.values() for trial in found.values()]

    def best(self) -> dict[Swept, float]:
        """Return the best standard deviation of each swept regime."""
        return {which: best_of(self._correct(which), self.sweep) for which in self.trials}

    def entries(self) -> list[dict[str, Any]]:
        """Return the table of each swept regime, in plain JSON types."""
        return [self._entry(which, std) for which, std in self.best().items()]

    def _correct(self, which: Swept) -> dict[float, Correct]:
        """Return by standard deviation (conditions, n), 1 where the prediction is correct."""
        return {
            std: np.stack([self.outcomes(self.seed, trial.id, c.id).correct for c in self.conditions])
            for std, trial in self.trials[which].items()
        }

    def _entry(self, which: Swept, best: float) -> dict[str, Any]:
        correct, (protocol, name) = self._correct(which), which
        scores = {std: each.mean(0) if self.sweep.by == "mean" else each.min(0) for std, each in correct.items()}
        rows = [
            {
                "std": std,
                "best": std == best,
                "score": as_dict(mean_interval(scores[std])),
                "behind": None if std == best else as_dict(paired_difference(scores[std], scores[best])),
                "accuracy": {
                    c.id: as_dict(share_interval(of)) for c, of in zip(self.conditions, correct[std], strict=True)
                },
                "seconds": self.store.notes(self.seed, self.trials[which][std].id)["seconds"],
            }
            for std in sorted(correct)
        ]
        return {
            "regime": f"{name}/{protocol}",
            "name": name,
            "protocol": protocol,
            "seed": self.seed,
            "by": self.sweep.by,
            "images": correct[best].shape[1],
            "held_out": self.held_out.part,
            "columns": [{"id": c.id, "name": c.name, "attack_setting": c.attack_setting} for c in self.conditions],
            "best": best,
            "rows": rows,
        }


@deterministic()
def sweep_noise(
    settings: Evaluation,
    out: Path,
    console: Console,
    ranks: Ranks | None = None,
    *,
    allow: Sequence[str] = (),
    phases: Phases = WHOLE,
) -> SweepResults:
    """Finish the sweep of an evaluation in the subfolder `sweep`, and write its tables to `sweep/table.json`.

    Args:
        settings: settings of the evaluation. Without a sweep they are only resolved.
        out: folder of the evaluation.
        console: where progress is shown.
        ranks: processes that share the trials; this process alone if None.
        allow: dotted paths that a command line allowed; the folder is bound to their source as well.
        phases: what to do of the evaluation; one that prepares makes the whole sweep, the others need it.

    Raises:
        ValueError: settings that cannot be run (see `resolve_settings`); or `out` holds an evaluation with other
            settings, or with a standard deviation that is not swept.
    """
    settings = resolve_settings(settings)
    if settings.sweep is None:
        return SweepResults(settings, [])
    sweep, ranks = settings.sweep, ranks or Ranks()

    def begin() -> SweepRun:
        _check_folder(settings, sweep, out, allow)
        return SweepRun(settings, sweep, out / FOLDER, console, ranks, allow)

    run = ranks.main_first(begin)
    run.run(WHOLE if phases.prepare else phases._replace(measure=False, report=True))
    entries, table = run.entries(), out / FOLDER / "table.json"
    if ranks.is_main:
        write_json(table, entries, indent=1, allow_nan=False)
    base = run.store if run.held_out.part == "val" else None  # else it was trained on fewer images
    return SweepResults(_with_stds(settings, run.best()), entries, table, base)


def best_of(correct: Mapping[float, Correct], sweep: Sweep) -> float:
    """Return the best standard deviation; the smallest wins a tie.

    Args:
        correct: by standard deviation (conditions, n), 1 where the prediction is correct.
        sweep: with the criterion.
    """
    # Counts, as means of equal counts may differ in their last bit.
    counts = {std: int(each.sum() if sweep.by == "mean" else each.min(axis=0).sum()) for std, each in correct.items()}
    return max(sorted(counts), key=lambda std: counts[std])


def _trial(which: Swept, std: float) -> Regime:
    protocol, name = which
    return Regime(f"{name}/{protocol}/{float(std)!r}", name, protocol, GaussianNoise(std))


def _with_stds(settings: Evaluation, stds: Mapping[Swept, float]) -> Evaluation:
    """Return the settings with other standard deviations in some regimes."""
    of: dict[str, Any] = {p: dict(getattr(settings.retraining, p)) for p in ("retrain", "on_the_fly")}
    for (protocol, name), std in stds.items():
        of[protocol][name] = GaussianNoise(std)
    return dataclasses.replace(settings, retraining=dataclasses.replace(settings.retraining, **of))


def _check_folder(settings: Evaluation, sweep: Sweep, out: Path, allow: Sequence[str]) -> None:
    """Refuse, before hours of a sweep, a folder that the evaluation could not use whatever is best."""
    if out.exists() and not out.is_dir():
        raise validation.fail("out", "a folder", f"the file {out}")
    before = read_settings(out)
    if before is None:
        return
    retraining = before.get("retraining") or {}
    possible: dict[Swept, float] = {}
    for protocol, name in settings.swept:
        own = ((retraining.get(protocol) or {}).get(name) or {}).get("std")
        possible[protocol, name] = next((std for std in sweep.stds if std == own), sweep.stds[0])
    init_run_dir(out, fingerprint(_with_stds(settings, possible), allow))
