"""Train and test the rows of a table, each with its own number of epochs, share, samples and labels."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from robustsigma.evaluation import Evaluation
from robustsigma.evaluation.matrix import Matrix
from robustsigma.evaluation.plan import Regime, conditions
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.lightning import LitClassifier
from robustsigma.lightning.sample_labels import SampleLabels
from robustsigma.runs.files import write_atomically
from robustsigma.runs.progress import RunProgress, Step
from study.setup import Plan


class Clock:
    """Adds up the seconds of all sessions of a study.

    Args:
        path: file in which the sum is stored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._start = path, time.perf_counter()
        self._before = float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0

    def seconds(self) -> float:
        """Return the seconds until now, and store them."""
        found = self._before + time.perf_counter() - self._start
        write_atomically(self.path, json.dumps({"seconds": found}).encode())
        return found


class Trainings(RobustnessRun):
    """The rows of a table. Tables of one folder share their base models, one for each seed.

    Args:
        settings: settings of the evaluation; each plan replaces those of its training.
        plans: rows beside the base model.
        out: output folder.
        console: console that shows the progress.
        clock: clock that measures the study.
    """

    def __init__(self, settings: Evaluation, plans: Sequence[Plan], out: Path, console: Console, clock: Clock) -> None:
        super().__init__(settings, out, console)
        self.regimes = [self.regimes[0], *plans]
        self.plans, self.clock, self.labels = list(plans), clock, SampleLabels()
        self.conditions = conditions(settings.conditions, transfer=len(self.regimes) > 1)
        self.training_images = len(settings.dataset.split("train"))  # type: ignore[arg-type]

    def finish_base(self) -> None:
        """Train the base model of the first seed if it is missing."""
        with RunProgress(1, self.console) as progress, progress.job("base: training") as step:
            self.train(self.settings.seeds[0], self.regimes[0], step)

    def train(self, seed: int, regime: Regime, step: Step = lambda done, total: None) -> None:
        """Train one model with the settings of its plan if it is missing."""
        planned = copy.copy(self)
        if isinstance(regime, Plan):
            planned.settings, planned.labels = regime.training.within(self.settings), regime.training.labels
        super(Trainings, planned).train(seed, regime, step)
        self.clock.seconds()

    def model(self, seed: int, regime: str, training: Any = None) -> LitClassifier:
        """Return a model with its plan's labels of SIGMA samples; it is trained if its weights are stored."""
        model = super().model(seed, regime, training)
        model.sample_labels = self.labels
        return model

    def matrix(self, plans: Sequence[Plan]) -> Matrix:
        """Return the outcomes of the base model and of finished rows."""
        rows, seeds = [self.regimes[0], *plans], list(self.settings.seeds)
        cells = {
            (row.id, column.id): [self.outcomes(seed, row.id, column.id) for seed in seeds]
            for row in rows
            for column in self.conditions
        }
        checks = {row.id: [found for seed in seeds if (found := self.attack_checks(seed, row))] for row in rows}
        complete = {name: found for name, found in checks.items() if len(found) == len(seeds)}
        return Matrix(rows, self.conditions, cells, seeds, len(self.settings.dataset.classes), complete)

    def notes(self, plan: Regime) -> list[dict[str, Any]]:
        """Return the notes on the trainings of a row, one per seed."""
        return [self.store.notes(seed, plan.id) for seed in self.settings.seeds]
