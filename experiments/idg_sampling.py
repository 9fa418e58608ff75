"""IDG's figure 8: uniform and adaptive sampling in IG and in IDG (Walker et al., 2024, appendix A.2).

    python experiments/idg_sampling.py                # results/idg_sampling.json and .png

The paper shows one image, without numbers: adaptive sampling (AS) hardly changes IG, IDG with uniform sampling (US) is
far better than both, and AS improves IDG further. This script draws maps of some images and evaluates all four methods
on more.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from shared.adaptive_ig import AdaptiveIG
from shared.options import baseline, parser, settings
from shared.output import command, interval, orders, table, write
from shared.scores import about, advantages, cells, run_benchmark

from robustsigma import IDG, Attributor, IntegratedGradients
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.table import ScoreTable
from robustsigma.engine.metrics import InsertionDeletion, Localization
from robustsigma.report.canvas import bare, image_of, label, overlay, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

TITLES = {
    "insertion": "Insertion",
    "deletion": "Deletion",
    "difference": "Insertion \u2212 deletion",
    "iou": "mIoU",
    "pointing_game": "Pointing game",
}
SHOWN = ("IG US", "IG AS", "IDG US", "IDG AS")


def methods(options: argparse.Namespace) -> dict[str, Attributor]:
    """Return both methods with both samplings."""
    start, steps = baseline(options), options.steps
    return {
        "IG US": IntegratedGradients(steps=steps, rule="midpoint", baseline=start),
        "IG AS": AdaptiveIG(steps, start),
        "IDG US": IDG(steps=steps, sampling="uniform", baseline=start),
        "IDG AS": IDG(steps=steps, baseline=start),
    }


def draw(run: BenchmarkRun, scores: ScoreTable, count: int) -> bytes:
    """Return a row of maps for each of some images as a PNG file."""
    places = range(min(count, len(run.evaluated.indices)))
    images, _ = run.load_images([run.evaluated.indices[place] for place in places])
    with styled():
        figure = Figure(figsize=(1.3 * (len(SHOWN) + 1), 1.4 * len(places)))
        axes = np.atleast_2d(figure.subplots(len(places), len(SHOWN) + 1, gridspec_kw={"wspace": 0.04, "hspace": 0.04}))
        for place, row in zip(places, axes, strict=True):
            row[0].imshow(image_of(images[place]), vmin=0, vmax=1)
            row[0].set_ylabel(label(run.dataset.classes[int(run.evaluated.labels[place])]), fontsize=7)
            for axis, name in zip(row[1:], SHOWN, strict=True):
                overlay(axis, images[place], scores.arrays[name]["map"][place])
            for axis, title in zip(row, ("image", *SHOWN), strict=True):
                bare(axis)
                if place == 0:
                    axis.set_title(title, fontsize=8)
        return png(figure)


def rows(found: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[list[str]]:
    """Return a line for each method."""
    of = {(cell["method"], cell["metric"]): cell for cell in found}
    return [[name, *(interval(of[name, metric]) for metric in metrics)] for name in dict.fromkeys(m for m, _ in of)]


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, draw, write."""
    made = parser(__doc__, images=100)
    made.add_argument("--steps", type=int, default=50, help="number of steps of each method")
    made.add_argument(
        "--pixels",
        type=int,
        help="number of pixels that insertion and deletion show at a time; the image width by default",
    )
    options = made.parse_args(arguments)
    provenance, name = Provenance(command("idg_sampling", arguments)), options.name or "idg_sampling"
    if options.fast:
        options.steps, options.images = 4, min(options.images, 4)
    metrics = [InsertionDeletion(step=options.pixels, reduction="sum_abs"), Localization(reduction="sum_abs")]
    run, tables = run_benchmark(settings(options, methods(options), metrics), options.work / name)
    shown = [
        title for title in TITLES if title in {column.metric.name for column in next(iter(tables.values())).columns}
    ]
    found = [cell for cell in cells(tables) if cell["metric"] in shown]
    gains = {method: advantages(tables, method, ["difference"]) for method in SHOWN[1:]}
    for model in tables:
        mine = [cell for cell in found if cell["model"] == model]
        print(f"{model}\n" + table(["method", *(TITLES[metric] for metric in shown)], rows(mine, shown)))
    for method, over in (("IG AS", "IG US"), ("IDG US", "IG US"), ("IDG US", "IG AS"), ("IDG AS", "IDG US")):
        print("\n".join(orders([gain for gain in gains[method] if gain["over"] == over], method, TITLES)))
    write_atomically(options.out / f"{name}.png", draw(run, next(iter(tables.values())), 3))
    print(write(options, "idg_sampling", {"cells": found, "advantages": gains, "about": about(run)}, provenance))


if __name__ == "__main__":
    main()
