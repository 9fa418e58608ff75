"""Does retraining with SIGMA samples help? A study whose conclusions follow from confidence intervals by rule.

    python experiments/does_it_help.py baggage
    python experiments/does_it_help.py cifar10 --root FOLDER   # with train/ and test/, a subfolder per class in each
    python experiments/does_it_help.py page                    # only the page, from existing results

There are three tables. "Matched by samples": clean images, Gaussian noise of the best std, FGSM, PGD, SIGMA samples
(made once as in the paper, on the fly, with a cache) and mixtures, each with the same number of optimizer steps and of
augmented images. "Matched by time": the same, each for as long as the most expensive one takes, counted in plain steps
that are measured side by side. "Variations": SIGMA on the fly with one part changed. All settings are in study/*.yaml.
Each seed has its own base model and trainings. Intervals are over seeds and images; differences are paired over both.

Each finished training and test is stored in --out, and an interrupted study resumes. Writes
results/does_it_help_DATASET.json, its pictures, and results/does_it_help.md from the results of all datasets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from study import cost, page, picture
from study.numbers import table
from study.setup import (
    CLEAN,
    GAUSSIAN,
    REFERENCE,
    SAMPLES,
    TIME,
    VARIATIONS,
    Plan,
    Setup,
    by_time,
    in_memory,
    load,
    plans,
)
from study.trainings import Clock, Trainings

from robustsigma.engine.device import best_device
from robustsigma.evaluation.noise_sweep import sweep_noise
from robustsigma.evaluation.plan import BASE, fingerprint
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import write_atomically
from robustsigma.runs.fingerprint import describe
from robustsigma.runs.provenance import Provenance

VARIATION_SEEDS = 3
TIMED_BATCHES = 4  # batches of an epoch over which costs are measured


def study(setup: Setup, out: Path, console: Console) -> dict[str, Any]:
    """Train and test what is missing in a folder, and return the numbers."""
    trainings = {name: describe(getattr(setup, name)) for name in ("regimes", "variations")}
    init_run_dir(out, {"settings": fingerprint(setup.settings), "sweep": describe(setup.settings.sweep), **trainings})
    clock = Clock(out / "clock.json")
    swept = sweep_noise(setup.settings, out / "noise", console)
    settings, std, seeds = swept.settings, swept.entries[0]["best"], list(swept.settings.each_seed)

    def run(rows: Sequence[Plan], seeds: Sequence[int]) -> Trainings:
        own = dataclasses.replace(settings, seeds=tuple(seeds))
        return Trainings(own, rows, out / "trainings", console, clock)

    rows, varied = plans(SAMPLES, setup.regimes, std), plans(VARIATIONS, setup.variations, std)
    first = run(rows, seeds)
    if swept.base is not None:
        first.store.adopt_model(seeds[0], BASE, swept.base)
    first.finish_base()
    costs = _costs(out / "costs.json", first, console)
    steps = {row.name: row.training.steps(first.training_images, settings.retraining.batch_size) for row in rows}
    budget = max(costs[row.name].of(row.training.epochs, steps[row.name]) for row in rows)
    longer = {row.name: max(row.training.epochs, costs[row.name].epochs(budget, steps[row.name])) for row in rows}
    timed = by_time(rows, longer)
    compared = [row for row in rows if row.name in (CLEAN, GAUSSIAN, REFERENCE)]
    parts = {
        SAMPLES: (first, rows),
        TIME: (run([row for row in timed if row not in rows], seeds), timed),
        VARIATIONS: (run(varied, seeds[:VARIATION_SEEDS]), [*compared, *varied]),
    }
    tables = {}
    for name, (trained, shown) in parts.items():
        console.print(f"[bold]{name}[/bold]")
        trained.run()
        tables[name] = table(trained, shown, {} if name == VARIATIONS else costs, swept.entries)
    return {
        "schema": 1,
        "study": "does_it_help",
        **_described(setup, first, rows),
        "costs": {name: dataclasses.asdict(found) for name, found in costs.items()},
        "budget": budget,
        "tables": tables,
        "sweep": swept.entries,
        "seconds": clock.seconds(),
    }


def _costs(path: Path, trainings: Trainings, console: Console) -> dict[str, cost.Cost]:
    """Return the costs, which are measured once per folder: the epochs of the second table follow from them."""
    if not path.is_file():
        settings = trainings.settings
        classifier = trainings.model(settings.each_seed[0], BASE).classifier.to(best_device())
        sizes = (trainings.training_images, settings.retraining.batch_size, TIMED_BATCHES)
        with console.status("timing the steps side by side"):
            found = cost.measure(classifier, trainings.plans, settings.dataset, *sizes)
        content = {name: dataclasses.asdict(each) for name, each in found.items()}
        write_atomically(path, json.dumps(content, indent=1).encode())
    return {name: cost.Cost(**each) for name, each in json.loads(path.read_text(encoding="utf-8")).items()}


def _described(setup: Setup, trainings: Trainings, rows: Sequence[Plan]) -> dict[str, Any]:
    settings = trainings.settings
    source = settings.dataset
    counts = {split: len(source.split(split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    return {
        "note": setup.note,
        "dataset": {"title": setup.title, "classes": list(source.classes), "shape": list(source.shape), **counts},
        "network": {**describe(settings.architecture), "training": describe(settings.training)},
        "retraining": describe(settings.retraining),
        "columns": [
            {"id": c.id, "name": c.name, "attack_setting": c.attack_setting, "settings": repr(c.perturbation)}
            for c in trainings.conditions
        ],
        "plans": {row.name: str(row.training) for row in rows},
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the study on a dataset, and write results, pictures and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["baggage", "cifar10", "page"], help="dataset, or `page` to write the page")
    parser.add_argument("--root", help="folder of CIFAR-10, with train/ and test/, and a subfolder per class in each")
    parser.add_argument("--seeds", type=int, default=5, help="number of base models, and of trainings of each row")
    parser.add_argument("--out", type=Path, help="folder of finished work; runs/does_it_help/DATASET by default")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results and the page")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options = parser.parse_args(arguments)
    name = options.dataset
    if name == "cifar10" and options.root is None:
        parser.error("cifar10 needs --root")
    if options.seeds < 1:
        parser.error(f"--seeds: expected 1 or more, got {options.seeds}")
    if name != "page":
        line = f"python experiments/does_it_help.py {name}" + (" --root FOLDER" if options.root else "")
        provenance = Provenance(line)
        setup = load("fast" if options.fast else name, options.root)
        dataset = setup.settings.dataset if setup.subset is None else in_memory(setup.settings.dataset, setup.subset)
        settings = dataclasses.replace(setup.settings, seeds=options.seeds, dataset=dataset)
        setup = dataclasses.replace(setup, settings=settings)
        out = options.out or Path("runs/does_it_help") / name
        found = {**study(setup, out, Console()), "run": provenance.record()}
        path = options.results / f"does_it_help_{name}.json"
        print(write_atomically(path, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()))
        for kind, content in picture.draw(found).items():
            print(write_atomically(path.with_name(f"{path.stem}{kind}.png"), content))
    print(page.write(options.results))


if __name__ == "__main__":
    main()
