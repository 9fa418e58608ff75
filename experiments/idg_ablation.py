"""IDG's figure 7: deletion over N, the passes that find where F rises, and M, the gradients (Walker et al., 2024).

    python experiments/idg_ablation.py                # results/idg_ablation.json and .png

The paper uses 10 images, and varies N or M from 5 to 100 while the other is 50. It finds that low N and M are poor, and
that N = M is most stable.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from shared.options import baseline, parser, settings
from shared.output import command, interval, table, write
from shared.scores import about, advantages, cells, run_benchmark

from robustsigma import IDG, Attributor
from robustsigma.engine.metrics import InsertionDeletion
from robustsigma.report.canvas import LINE, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

COUNTS = (5, 10, 20, 30, 40, 50, 70, 100)
SAME = "N 50 M 50"


def methods(options: argparse.Namespace) -> dict[str, Attributor]:
    """Return IDG with other N and 50 points, and with other M and 50 passes, by name."""
    pairs = [*((n, 50) for n in options.counts), *((50, m) for m in options.counts), (50, 50)]
    start = baseline(options)
    return {f"N {n} M {m}": IDG(steps=m, intervals=n, baseline=start) for n, m in dict.fromkeys(pairs)}


def series(found: Sequence[Mapping[str, Any]], vary: str, counts: Sequence[int]) -> list[Mapping[str, Any]]:
    """Return the deletion of each count of N, or of M, the other being 50."""
    named = [f"N {count} M 50" if vary == "N" else f"N 50 M {count}" for count in counts]
    of = {cell["method"]: cell for cell in found if cell["metric"] == "deletion"}
    return [of[name] for name in named]


def draw(found: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> bytes:
    """Return both curves with their intervals as a PNG file."""
    with styled():
        figure = Figure(figsize=(6.6, 2.6))
        for axis, vary in zip(figure.subplots(1, 2, sharey=True), ("N", "M"), strict=True):
            of = series(found, vary, counts)
            axis.plot(counts, [cell["mean"] for cell in of], color=LINE, marker="o", markersize=3)
            axis.fill_between(counts, [c["low"] for c in of], [c["high"] for c in of], color=LINE, alpha=0.15)
            axis.set(xlabel=f"{vary}, the other is 50", title=f"Deletion over {vary}", xlim=(0, None))
        figure.axes[0].set_ylabel("Deletion (lower is better)")
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, draw, write."""
    made = parser(__doc__, images=100)
    made.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="values of N and M")
    made.add_argument(
        "--pixels", type=int, help="number of pixels that deletion hides at a time; the image width by default"
    )
    options = made.parse_args(arguments)
    provenance = Provenance(command("idg_ablation", arguments))
    if options.fast:
        options.counts, options.images = (5, 10), min(options.images, 4)
    metric = InsertionDeletion(step=options.pixels, reduction="sum_abs")
    asked = settings(options, methods(options), [metric])
    run, tables = run_benchmark(asked, options.work / (options.name or "idg_ablation"))
    found, gains = cells(tables), advantages(tables, SAME, ["deletion"])
    over = {gain["over"]: gain for gain in gains}
    for model in tables:
        mine = [cell for cell in found if cell["model"] == model]
        rows = [
            [cell["method"], interval(cell), interval(over.get(cell["method"]))]
            for vary in ("N", "M")
            for cell in series(mine, vary, options.counts)
        ]
        print(f"{model}\n" + table(["passes and points", "Deletion \u2193", f"gain of {SAME}"], rows))
    kept = {"cells": found, f"{SAME} over others": gains, "about": about(run)}
    picture = options.out / f"{options.name or 'idg_ablation'}.png"
    write_atomically(picture, draw([c for c in found if c["model"] == next(iter(tables))], options.counts))
    print(write(options, "idg_ablation", kept, provenance))


if __name__ == "__main__":
    main()
