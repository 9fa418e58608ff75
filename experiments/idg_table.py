"""IDG's table 1: AIC, SIC, insertion and deletion of five path methods (Walker et al., 2024). results/idg_table.json.

    python experiments/idg_table.py
    python experiments/idg_table.py --model torchvision:resnet101 --root photographs --images 100
    python experiments/idg_table.py --from runs/photographs/results.json   # existing results of `robustsigma benchmark`

The paper uses 5,000 images of ImageNet's validation set, ResNet-101, ResNet-152 and ResNeXt, 50 steps and black
baselines. Its code deletes to the mean color, skips no image in AIC and SIC, and gives AGI one false class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import baseline, parser, settings
from shared.output import command, interval, orders, table, write
from shared.scores import about, advantages, cells, run_benchmark

from robustsigma import AGI, IDG, Attributor, GuidedIntegratedGradients, IntegratedGradients, LeftIntegratedGradients
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.metrics import InsertionDeletion, PerformanceInformation
from robustsigma.runs.provenance import Provenance

NETWORKS = ("ResNet-101", "ResNet-152", "ResNeXt")
PAPER = {
    "aic": {
        "IG": (0.571, 0.575, 0.580),
        "Left-IG": (0.589, 0.616, 0.611),
        "Guided IG": (0.626, 0.646, 0.634),
        "AGI": (0.675, 0.686, 0.654),
        "IDG": (0.701, 0.718, 0.730),
    },
    "sic": {
        "IG": (0.498, 0.508, 0.478),
        "Left-IG": (0.522, 0.552, 0.518),
        "Guided IG": (0.559, 0.582, 0.532),
        "AGI": (0.609, 0.619, 0.554),
        "IDG": (0.638, 0.659, 0.620),
    },
    "insertion": {
        "IG": (0.498, 0.517, 0.276),
        "Left-IG": (0.535, 0.562, 0.299),
        "Guided IG": (0.547, 0.565, 0.296),
        "AGI": (0.561, 0.577, 0.307),
        "IDG": (0.592, 0.615, 0.324),
    },
    "deletion": {
        "IG": (0.181, 0.202, 0.101),
        "Left-IG": (0.148, 0.148, 0.078),
        "Guided IG": (0.155, 0.164, 0.082),
        "AGI": (0.172, 0.190, 0.104),
        "IDG": (0.108, 0.118, 0.068),
    },
}
TITLES = {"aic": "AIC", "sic": "SIC", "insertion": "Insertion", "deletion": "Deletion"}
ARROWS = {"aic": "\u2191", "sic": "\u2191", "insertion": "\u2191", "deletion": "\u2193"}
METHODS = tuple(PAPER["aic"])


def methods(start: BaselineName, steps: int) -> dict[str, Attributor]:
    """Return the methods of the table, each with as many steps, from one baseline."""
    return {
        "IG": IntegratedGradients(steps=steps, baseline=start),
        "Left-IG": LeftIntegratedGradients(steps=steps, baseline=start),
        "Guided IG": GuidedIntegratedGradients(steps=steps, baseline=start),
        "AGI": AGI(classes=1),
        "IDG": IDG(steps=steps, baseline=start),
    }


def lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table for each network: ours, and the paper's networks in brackets."""
    for model in dict.fromkeys(cell["model"] for cell in found):
        of = {(cell["method"], cell["metric"]): cell for cell in found if cell["model"] == model}
        named = list(dict.fromkeys(method for method, _ in of))
        rows = [[name, *(_both(of.get((name, metric)), PAPER[metric].get(name)) for metric in PAPER)] for name in named]
        yield f"{model} (the paper's {', '.join(NETWORKS)} in brackets)"
        yield table(["method", *(f"{title} {ARROWS[name]}" for name, title in TITLES.items())], rows)


def _both(cell: Mapping[str, Any] | None, paper: Sequence[float] | None) -> str:
    shown = "" if paper is None else " [" + ", ".join(f"{value:.3f}" for value in paper) + "]"
    return interval(cell) + shown


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, write."""
    made = parser(__doc__, images=100)
    made.add_argument("--steps", type=int, default=50, help="number of steps of each method")
    made.add_argument(
        "--pixels",
        type=int,
        help="number of pixels that insertion and deletion show at a time; the image width by default",
    )
    made.add_argument("--from", dest="given", type=Path, help="results.json of a benchmark with these methods")
    options = made.parse_args(arguments)
    provenance = Provenance(command("idg_table", arguments))
    if options.given:
        theirs = json.loads(options.given.read_text(encoding="utf-8"))
        shown = {method["id"] for method in theirs["methods"] if method["control"]} | set(METHODS)
        found = [cell for cell in theirs["cells"] if cell["metric"] in PAPER and cell["method"] in shown]
        gains, about_run = [], {"benchmark": theirs["run"]}
    else:
        if options.fast:
            options.steps, options.images = 4, min(options.images, 4)
        metrics = (
            InsertionDeletion(step=options.pixels, reduction="sum_abs"),
            PerformanceInformation(reduction="sum_abs"),
        )
        asked = settings(options, methods(baseline(options), options.steps), metrics)
        run, tables = run_benchmark(asked, options.work / (options.name or "idg_table"))
        found = [cell for cell in cells(tables) if cell["metric"] in PAPER]
        gains, about_run = advantages(tables, "IDG", PAPER), about(run)
    print("\n".join([*lines(found), *orders(gains, "IDG", TITLES)]))
    kept = {"paper": {"networks": NETWORKS, **PAPER}, "cells": found, "IDG over others": gains, "about": about_run}
    print(write(options, "idg_table", kept, provenance))


if __name__ == "__main__":
    main()
