"""Tables 1 to 4 and figure 3 of Akhtar and Jalwana (2023): results/credible_tables.json, and .png of figure 3.

    python experiments/credible_tables.py
    python experiments/credible_tables.py --model torchvision:resnet50 --root photographs --images 100 --pixels 1792
    python experiments/credible_tables.py --paper cifar10 --model robustsigma.models.CifarResNet --weights resnet20.pt \
        --size 32 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --root cifar10/test

The paper shows insertion minus deletion of IG from three baselines, AGI, Expected Gradients and its own method (tables
1 and 2: 2,500 photographs of ImageNet; table 3: 1,000 images of CIFAR-10) and of the parts of its method (table 4), and
Sensitivity-N over the share of pixels (figure 3), with 150 steps and three baselines. It does not state the steps and
thresholds of its search: this script uses the defaults of `CrediblePath`. The paper evaluates all images, this script
those that the network classifies correctly.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from shared.options import baseline, parser, settings
from shared.output import command, interval, orders, table, write
from shared.scores import about, advantages, cells, run_benchmark
from shared.valid_gradients import ValidGradients

from robustsigma import AGI, Attributor, CrediblePath, ExpectedGradients, IntegratedGradients
from robustsigma.benchmarking.table import ScoreTable
from robustsigma.engine.metrics import InsertionDeletion, SensitivityN, mean_band
from robustsigma.report.canvas import LINE, QUIET, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

OURS, SINGLE, IG_BASELINE = "Credible path", "Credible path 1 baseline", "Credible path IG baseline"
PAPER: dict[str, dict[str, Any]] = {
    "imagenet": {
        "networks": ("ResNet-50", "DenseNet-121", "VGG-16"),
        "confidence": (0.77, 0.81, 0.69),
        "images": 2500,
        "difference": {
            "IG": (0.3711, 0.5042, 0.2532),
            "IG gaussian": (0.2997, 0.4128, 0.1609),
            "IG mean": (0.4653, 0.5493, 0.3387),
            "AGI": (0.3995, 0.4549, 0.2419),
            "Expected Gradients": (0.4004, 0.5171, 0.2727),
            OURS: (0.5311, 0.6228, 0.4023),
            SINGLE: (0.5254, 0.6192, 0.3602),
            IG_BASELINE: (0.3809, 0.5112, 0.2552),
        },
    },
    "resnets": {  # table 2
        "networks": ("ResNet-50", "ResNet-34", "ResNet-18"),
        "confidence": (0.77, 0.75, 0.64),
        "images": 2500,
        "difference": {"IG": (0.3711, 0.3854, 0.2481), OURS: (0.5311, 0.5185, 0.3675)},
    },
    "cifar10": {
        "networks": ("ResNet-50", "DenseNet-121", "VGG-16"),
        "confidence": (0.81, 0.74, 0.79),
        "images": 1000,
        "difference": {
            "IG": (0.5502, 0.4693, 0.4873),
            "IG mean": (0.5619, 0.5039, 0.4964),
            OURS: (0.5889, 0.5448, 0.5120),
        },
    },
}
TITLES = {"difference": "insertion \u2212 deletion", "sensitivity_n": "Sensitivity-N"}


def methods(options: argparse.Namespace) -> dict[str, Attributor]:
    """Return the methods of all tables."""
    start, steps = baseline(options), options.steps
    search = {"max_search": 5} if options.fast else {}
    return {
        "IG": IntegratedGradients(steps=steps, baseline=start),
        "IG gaussian": IntegratedGradients(steps=steps, baseline="gaussian"),
        "IG mean": IntegratedGradients(steps=steps, baseline="mean"),
        "AGI": AGI(classes=3, steps=max(1, steps // 3)),
        "Expected Gradients": ExpectedGradients(draws=steps),
        OURS: CrediblePath(steps=steps, **search),
        SINGLE: CrediblePath(steps=steps, blurs=(5 / 224,), **search),
        IG_BASELINE: ValidGradients(steps, start),
    }


def rows(found: Sequence[Mapping[str, Any]], paper: Mapping[str, Any]) -> list[list[str]]:
    """Return a line for each method: ours, its gain over IG, and the paper's three networks."""
    of = {(cell["method"], cell["metric"]): cell for cell in found}
    base = of["IG", "difference"].get("mean")
    made = []
    for name in dict.fromkeys(method for method, _ in of):
        mine = of[name, "difference"].get("mean")
        gain = "-" if mine is None or not base else f"{mine / base - 1:+.0%}"
        theirs, ig = paper["difference"].get(name), paper["difference"]["IG"]
        shown = (
            ["-"] * 3 if theirs is None else [f"{t:.3f} ({t / b - 1:+.0%})" for t, b in zip(theirs, ig, strict=True)]
        )
        made.append([name, interval(of[name, "difference"]), gain, *shown, interval(of[name, "sensitivity_n"])])
    return made


def curves(scores: ScoreTable, names: Sequence[str]) -> dict[str, Any]:
    """Return Sensitivity-N over the share of pixels, with its interval, of images that have all of it."""
    found: dict[str, Any] = {"share": scores.arrays[names[0]]["grid/sensitivity_n"].tolist()}
    for name in names:
        of = scores.arrays[name]["curve/sensitivity_n"]
        whole = of[np.isfinite(of).all(1)]
        if len(whole):
            band = (part.tolist() for part in mean_band(whole))
            found[name] = {**dict(zip(("mean", "low", "high"), band, strict=True)), "n": len(whole)}
    return found


def draw(found: Mapping[str, Any]) -> bytes:
    """Return figure 3 as a PNG file."""
    with styled():
        figure = Figure(figsize=(4.2, 2.8))
        axis = figure.subplots()
        for name, color in (("IG", QUIET), (OURS, LINE)):
            if name in found:
                axis.plot(found["share"], found[name]["mean"], color=color, label=name)
                axis.fill_between(found["share"], found[name]["low"], found[name]["high"], color=color, alpha=0.15)
        axis.set(xscale="log", xlabel="share of pixels removed", ylabel="correlation", title="Sensitivity-N")
        axis.legend(frameon=False)
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, draw, write."""
    made = parser(__doc__, images=50)
    made.add_argument("--steps", type=int, default=150, help="number of steps of each method")
    made.add_argument(
        "--paper", choices=list(PAPER), default="imagenet", help="table of the paper that is shown for comparison"
    )
    made.add_argument(
        "--pixels",
        type=int,
        help="number of pixels that insertion and deletion show at a time; the image width by default",
    )
    made.add_argument("--subsets", type=int, default=100, help="number of Sensitivity-N's pixel sets per share")
    options = made.parse_args(arguments)
    provenance, name = Provenance(command("credible_tables", arguments)), options.name or "credible_tables"
    if options.fast:
        options.steps, options.subsets, options.images = 6, 8, min(options.images, 4)
    metrics = [InsertionDeletion(step=options.pixels), SensitivityN(subsets=options.subsets)]
    run, tables = run_benchmark(settings(options, methods(options), metrics), options.work / name)
    paper, found = PAPER[options.paper], [cell for cell in cells(tables) if cell["metric"] in TITLES]
    gains, lines = advantages(tables, OURS, TITLES), {model: curves(of, ["IG", OURS]) for model, of in tables.items()}
    head = [
        "method",
        "insertion \u2212 deletion",
        "over IG",
        *(f"paper, {n}" for n in paper["networks"]),
        "Sensitivity-N",
    ]
    for model in tables:
        mine = [cell for cell in found if cell["model"] == model]
        print(f"{model}\n" + table(head, rows(mine, paper)))
    print("\n".join(orders(gains, OURS, TITLES)))
    write_atomically(options.out / f"{name}.png", draw(next(iter(lines.values()))))
    kept = {"paper": paper, "cells": found, f"{OURS} over others": gains, "curves": lines, "about": about(run)}
    print(write(options, "credible_tables", kept, provenance))


if __name__ == "__main__":
    main()
