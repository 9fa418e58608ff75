"""Trains and tests the rows of a table, each with a number of epochs, a share and labels of its own."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from robustsigma.evaluation import Evaluation
from robustsigma.evaluation.diagnosis import Diagnosis
from robustsigma.evaluation.lightning import quiet
from robustsigma.evaluation.matrix import Matrix
from robustsigma.evaluation.progress import RunProgress
from robustsigma.evaluation.run import Regime, Run
from robustsigma.files import write_atomically
from robustsigma.training import LitClassifier
from robustsigma.training.sample_labels import SampleLabels
from study.plans import Plan


class Clock:
    """Adds up the seconds of all the sessions that a study took.

    Args:
        path: of the file that keeps them.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._start = path, time.perf_counter()
        self._before = float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0

    def seconds(self) -> float:
        """Return the seconds until now, and keep them."""
        found = self._before + time.perf_counter() - self._start
        write_atomically(self.path, json.dumps({"seconds": found}).encode())
        return found


class Trainings(Run):
    """The rows of a table. Tables of one folder share their base models, one for each seed.

    Args:
        settings: of all, but for what a plan says.
        plans: the rows, beside the base model.
        out: the folder.
        console: where progress is shown.
        clock: that goes meanwhile.
    """

    def __init__(self, settings: Evaluation, plans: Sequence[Plan], out: Path, console: Console, clock: Clock) -> None:
        super().__init__(settings, out, console)
        self.regimes = [self.regimes[0], *plans]
        self.plans, self.clock, self.labels = list(plans), clock, SampleLabels()
        self.images = len(settings.source.split("train"))  # type: ignore[arg-type]

    def finish_base(self) -> None:
        """Train the base model of the first seed, if it is missing."""
        with quiet(), RunProgress(1, self.console) as progress:
            self.finish_training(self.settings.seeds[0], self.regimes[0], "base", progress)

    def finish_training(self, seed: int, regime: Regime, title: str, progress: RunProgress) -> None:
        """Train one model, if it is missing, as its plan says."""
        planned = copy.copy(self)
        if isinstance(regime, Plan):
            planned.settings, planned.labels = regime.within(self.settings, self.images), regime.labels
        super(Trainings, planned).finish_training(seed, regime, title, progress)
        self.clock.seconds()

    def model(self, seed: int, regime: str, training: Any = None) -> LitClassifier:
        """Return a model, trained if its weights are there, which takes SIGMA samples as its plan says."""
        model = super().model(seed, regime, training)
        model.sample_labels = self.labels
        return model

    def matrix(self, plans: Sequence[Plan] | None = None) -> Matrix:
        """Return the outcomes of finished rows; `plans` in another order, or fewer."""
        rows = [self.regimes[0], *(self.plans if plans is None else plans)]
        seeds = list(self.settings.seeds)
        cells = {
            (row.id, column.id): [self.store.read_outcomes(seed, row.id, column.id) for seed in seeds]
            for row in rows
            for column in self.columns
        }
        checked: dict[str, list[Diagnosis]] = {}
        for row in rows:
            found = [self.diagnosis(seed, row) for seed in seeds]
            checked[row.id] = [one for one in found if one is not None]
        return Matrix(
            rows, self.columns, cells, seeds, {name: d for name, d in checked.items() if len(d) == len(seeds)}
        )

    def notes(self, plan: Regime) -> list[dict[str, Any]]:
        """Return the notes on the trainings of a row, one for each seed."""
        return [self.store.notes(seed, plan.id) for seed in self.settings.seeds]
