"""SIGMA's figure 10: retraining with SIGMA samples, against noise and attacks (Henry et al., 2025, section 6).

    python experiments/figure10.py                                        # baggage scans, 3 seeds
    python experiments/figure10.py --config configs/evaluate/figure10_cifar10.yaml --dataset.init_args.root cifar10 \
        --architecture.weights resnet20.pt --name figure10_cifar10        # any option of `robustsigma evaluate`

The paper retrains an InceptionV3 once on 500 training images of Security-XAI, perturbed once against it, and tests 100
images; its bars have no numbers. It claims that SIGMA retraining has the highest accuracy over all perturbations
together, keeps clean accuracy, and gives robustness to Gaussian noise and FGSM. This script reports attacks made
against the base model before retraining ("transfer", as in the paper) and against the tested model ("adaptive"), beside
a control that was retrained equally long without samples. Writes results/figure10.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from shared.output import command, interval, table, verdict, write

from robustsigma.cli.evaluate import PRESETS
from robustsigma.data import Baggage
from robustsigma.engine.metrics import mean_interval, paired_difference
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation import Evaluation, Training, run_study
from robustsigma.evaluation.plan import ADAPTIVE, TRANSFER
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture
from robustsigma.runs.provenance import Provenance

SHOWN = ("clean", "gaussian", "fgsm", "sigma")
CONTROL = "clean/retrain"


def scans(fast: bool) -> Evaluation:
    """Return the evaluation of the built-in scans, with the four regimes and conditions of the figure, and 3 seeds."""
    given = PRESETS.load("baggage")
    retrain = {name: p for name, p in given.retraining.retrain.items() if name in SHOWN}
    again = dataclasses.replace(given.retraining, retrain=retrain, on_the_fly={})
    conditions = {name: p for name, p in given.conditions.items() if name in SHOWN}
    asked = dataclasses.replace(given, retraining=again, conditions=conditions, seeds=(0, 1, 2))
    if not fast:
        return asked
    return dataclasses.replace(
        asked,
        dataset=Baggage(size=16, train=60, val=10, test=30),
        architecture=Architecture(arguments={"width": 4}),
        training=Training(epochs=2, batch_size=16, lr=0.01),
        retraining=dataclasses.replace(again, samples=8, epochs=1),
        checks=dataclasses.replace(given.checks, images=0),
        seeds=(0,),
        test_images=12,
    )


def correct(run: RobustnessRun, regime: str, attack_setting: str) -> np.ndarray:
    """Return whether predictions are correct (seeds, conditions, n) of one attack_setting of the attacks."""
    chosen = [column for column in run.conditions if column.attack_setting in ("none", attack_setting)]
    seeds = run.settings.seeds
    return np.array([[run.outcomes(s, regime, c.id).correct for c in chosen] for s in seeds], np.float64)


def together(run: RobustnessRun, attack_setting: str) -> list[dict[str, Any]]:
    """Return each regime's accuracy over all conditions taken together, and how it differs from the control's."""
    found, control = [], correct(run, CONTROL, attack_setting).mean(1)
    for regime in run.regimes:
        mine = correct(run, regime.id, attack_setting).mean(1)
        against = None if regime.id == CONTROL else as_dict(paired_difference(mine, control))
        entry = {"regime": regime.id, "attack_setting": attack_setting, **as_dict(mean_interval(mine))}
        found.append({**entry, "against the control": against})
    return found


def cells(run: RobustnessRun) -> list[dict[str, Any]]:
    """Return the accuracy of each regime under each condition."""
    found = []
    for regime in run.regimes:
        for column in run.conditions:
            of = [run.outcomes(seed, regime.id, column.id).correct for seed in run.settings.seeds]
            key = {"regime": regime.id, "condition": column.id}
            found.append({**key, **as_dict(mean_interval(np.array(of, np.float64)))})
    return found


def lines(run: RobustnessRun, found: list[dict[str, Any]], sums: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table of accuracies, and what holds of the paper's claims."""
    of = {(cell["regime"], cell["condition"]): cell for cell in found}
    total = {(entry["regime"], entry["attack_setting"]): entry for entry in sums}
    head = ["model", *(column.id for column in run.conditions), "all, adaptive", "all, transfer"]
    rows = [
        [
            r.id,
            *(interval(of[r.id, c.id]) for c in run.conditions),
            *(interval(total[r.id, k]) for k in (ADAPTIVE, TRANSFER)),
        ]
        for r in run.regimes
    ]
    yield table(head, rows)
    for entry in sums:
        if entry["against the control"] is not None and entry["regime"] != "base":
            gain: Mapping[str, Any] = entry["against the control"]
            result = f"{entry['regime']} over the control {interval(gain)}: {verdict(gain)}"
            yield f"All conditions, {entry['attack_setting']}: {result}"


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"), help="folder of unfinished work")
    parser.add_argument("--name", default="figure10", help="name of the results file and of the report's folder")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options, rest = parser.parse_known_args(arguments)
    provenance = Provenance(command("figure10", arguments))
    asked = PRESETS.load("baggage", rest) if rest else scans(options.fast)
    run_study(asked, options.work / options.name, console=Console(stderr=True))
    run = RobustnessRun(asked, options.work / options.name, Console(quiet=True))
    found, sums = (
        cells(run),
        [entry for attack_setting in (ADAPTIVE, TRANSFER) for entry in together(run, attack_setting)],
    )
    print("\n".join(lines(run, found, sums)))
    about = {
        "dataset": type(asked.dataset).__name__,
        "classes": list(asked.dataset.classes),
        "network": asked.architecture.name,
        "base model": f"{asked.training.epochs} epochs",
        "samples": asked.retraining.samples,
        "epochs": asked.retraining.epochs,
        "seeds": list(asked.seeds),
        "conditions": {name: repr(p) for name, p in asked.conditions.items()},
        "retrained on": {name: repr(p) for name, p in asked.retraining.retrain.items()},
    }
    print(write(options, "figure10", {"about": about, "cells": found, "together": sums}, provenance))


if __name__ == "__main__":
    main()
