"""Does retraining with SIGMA samples help? An honest study, stated with intervals whichever way they point.

    python experiments/does_it_help.py baggage
    python experiments/does_it_help.py cifar10 --root FOLDER      # with train/ and test/, a folder a class in each
    python experiments/does_it_help.py page                       # the page alone, from the results that are there

Three tables. "Matched by samples": clean, Gaussian noise of the best swept strength, FGSM, PGD, SIGMA samples (made
once as in the paper, on the fly, with a bank) and mixtures, each with as many optimiser steps and as many augmented
images. "Matched by time": the same, each for as long as the most expensive one takes, counted in plain steps that are
measured side by side. "Variations": SIGMA on the fly with one part changed. Every seed is another base model and other
trainings; intervals are over seeds and images, differences are paired over both.

Each training, and each of its columns, is kept in --out as it is finished: called again, the study goes on from there.
Writes results/does_it_help_DATASET.json, its pictures, and results/does_it_help.md from all datasets' results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from study import cost, page, picture
from study.numbers import table
from study.plans import (
    CLEAN,
    GAUSSIAN,
    REFERENCE,
    SAMPLES,
    TIME,
    TRANSFER,
    VARIATIONS,
    Plan,
    by_samples,
    by_time,
    described,
    variations,
)
from study.setups import VARIATION_SEEDS, Setup, baggage, cifar10, tiny
from study.trainings import Clock, Trainings

from robustsigma.device import best_device
from robustsigma.evaluation import Evaluation
from robustsigma.evaluation.noise_sweep import sweep_noise
from robustsigma.evaluation.run import BASE, kept
from robustsigma.evaluation.settings import describe
from robustsigma.files import claim, write_atomically
from robustsigma.provenance import Provenance

FAST = (CLEAN, GAUSSIAN, TRANSFER, REFERENCE)


class Study:
    """The study on one dataset, in one folder.

    Args:
        setup: the dataset, and what is trained.
        out: the folder; what an earlier call finished there is not done again.
        console: where progress is shown.
        names: rows of the first two tables; None is all of them.
        varied: rows of the third; None is all of them.
    """

    def __init__(
        self, setup: Setup, out: Path, console: Console, names: tuple[str, ...] | None = None, varied: int | None = None
    ) -> None:
        self.setup, self.out, self.console = setup, out, console
        sweep = describe(setup.settings.sweep)
        claim(out, {"settings": kept(setup.settings), "training": describe(setup.training), "sweep": sweep})
        self.clock = Clock(out / "clock.json")
        swept = sweep_noise(setup.settings, out / "noise", console)
        self.settings, self.sweep = swept.settings, swept.entries
        plans = by_samples(setup.training, swept.entries[0]["best"])
        self.plans = [plan for plan in plans if names is None or plan.name in names]
        self.varied = variations(setup.training)[:varied]
        self.seeds = self.settings.seeds
        first = self._trainings(self.plans, self.seeds)
        if swept.base is not None:
            first.store.adopt_model(self.seeds[0], BASE, swept.base)
        self.first = first

    def _trainings(self, plans: list[Plan], seeds: Any) -> Trainings:
        settings: Evaluation = dataclasses.replace(self.settings, seeds=seeds)
        return Trainings(settings, plans, self.out / "trainings", self.console, self.clock)

    def run(self) -> dict[str, Any]:
        """Train and test what is missing; return the numbers."""
        self.first.finish_base()
        costs = self._costs()
        images, batch = self.first.images, self.settings.retraining.batch_size
        steps = {plan.name: plan.steps(images, batch) for plan in self.plans}
        budget = max(costs[plan.name].of(plan.epochs, steps[plan.name]) for plan in self.plans)
        longer = {plan.name: max(plan.epochs, costs[plan.name].epochs(budget, steps[plan.name])) for plan in self.plans}
        timed = by_time(self.plans, longer)
        few = list(self.seeds)[:VARIATION_SEEDS]
        compared = [plan for plan in self.plans if plan.name in (CLEAN, GAUSSIAN, REFERENCE)]
        parts = {
            SAMPLES: (self.first, self.plans),
            TIME: (self._trainings([plan for plan in timed if plan not in self.plans], self.seeds), timed),
            VARIATIONS: (self._trainings(self.varied, few), [*compared, *self.varied]),
        }
        tables = {}
        for name, (run, rows) in parts.items():
            self.console.print(f"[bold]{name}[/bold]")
            run.run()
            tables[name] = table(run, rows, {} if name == VARIATIONS else costs, self.sweep)
        return {
            "schema": 1,
            "study": "does_it_help",
            **self._described(),
            "costs": {name: dataclasses.asdict(found) for name, found in costs.items()},
            "budget": budget,
            "tables": tables,
            "sweep": self.sweep,
            "seconds": self.clock.seconds(),
        }

    def _costs(self) -> dict[str, cost.Cost]:
        """Return what is measured once in a folder, as the second table's epochs follow from it."""
        path = self.out / "costs.json"
        if not path.is_file():
            classifier = self.first.model(self.seeds[0], BASE).classifier.to(best_device())
            with self.console.status("timing the steps side by side"):
                batch, source = self.settings.retraining.batch_size, self.settings.source
                found = cost.measure(classifier, self.plans, source, self.first.images, batch, self.setup.timed_steps)
            told = {name: dataclasses.asdict(each) for name, each in found.items()}
            write_atomically(path, json.dumps(told, indent=1).encode())
        return {name: cost.Cost(**each) for name, each in json.loads(path.read_text(encoding="utf-8")).items()}

    def _described(self) -> dict[str, Any]:
        settings = self.settings
        count = {split: len(settings.source.split(split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
        return {
            "note": self.setup.note,
            "dataset": {
                "title": self.setup.title,
                "classes": list(settings.source.classes),
                "shape": list(settings.source.shape),
                **count,
            },
            "network": {**describe(settings.architecture), "training": describe(settings.training)},
            "retraining": {**describe(settings.retraining), **describe(self.setup.training)},
            "columns": [
                {"id": c.id, "name": c.name, "reading": c.reading, "settings": repr(c.perturbation)}
                for c in self.first.columns
            ],
            "plans": {plan.name: described(plan) for plan in self.plans},
        }


def main(arguments: list[str] | None = None) -> None:
    """Run the study of a dataset, and write results, pictures and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["baggage", "cifar10", "page"])
    parser.add_argument("--root", help="folder of CIFAR-10: train/ and test/, a folder a class in each")
    parser.add_argument("--seeds", type=int, default=5, help="base models, and trainings of each row")
    parser.add_argument("--out", type=Path, help="folder of what is finished; runs/does_it_help/DATASET")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the numbers and the page")
    parser.add_argument("--fast", action="store_true", help="small, to see that it runs")
    options = parser.parse_args(arguments)
    if options.dataset != "page":
        if options.dataset == "cifar10" and options.root is None:
            parser.error("cifar10 needs --root")
        if options.seeds < 1:
            parser.error(f"--seeds: expected 1 or more, got {options.seeds}")
        _study(options)
    print(page.write(options.results))


def _study(options: argparse.Namespace) -> None:
    name = options.dataset
    provenance = Provenance(f"python experiments/does_it_help.py {name}" + (" --root FOLDER" if options.root else ""))
    setup = cifar10(options.root) if name == "cifar10" else tiny() if options.fast else baggage()
    setup = dataclasses.replace(setup, settings=dataclasses.replace(setup.settings, seeds=tuple(range(options.seeds))))
    few: dict[str, Any] = {"names": FAST, "varied": 1} if options.fast else {}
    study = Study(setup, options.out or Path("runs/does_it_help") / name, Console(), **few)
    found = {**study.run(), "run": provenance.record()}
    path = options.results / f"does_it_help_{name}.json"
    print(write_atomically(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()))
    for kind, content in picture.draw(found).items():
        print(write_atomically(path.with_name(f"{path.stem}{kind}.png"), content))


if __name__ == "__main__":
    main()
