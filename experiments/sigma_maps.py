"""SIGMA's figures 5 to 7: maps of one image by each method, whole and as binary areas (Henry et al., 2025).

    python experiments/sigma_maps.py                  # results/sigma_maps.json and .png

Figure 5 shows a Dobermann with its SIC, where SIGMA's is largest; figures 6 and 7 show scans with annotated objects,
where the paper finds SIGMA's map sharpest. Each shows one image, without numbers except the SIC curve. This script
shows three images and evaluates all methods. Its binary rows show as many of the highest pixels as the object has (a
tenth of unannotated images).
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from shared.options import baseline, parser, settings
from shared.output import command, interval, orders, table, write
from shared.scores import about, advantages, cells, run_benchmark

from robustsigma import IG2, Attributor, GuidedIntegratedGradients, IntegratedGradients, Sigma
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.table import ScoreTable
from robustsigma.engine.metrics import Localization, PerformanceInformation
from robustsigma.report.canvas import bare, image_of, label, overlay, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

TITLES = {"sic": "SIC", "aic": "AIC", "iou": "mIoU", "pointing_game": "Pointing game"}
SHOWN = ("IG", "Guided IG", "IG2", "SIGMA")
_UNMARKED = 0.1


def methods(options: argparse.Namespace) -> dict[str, Attributor]:
    """Return the paper's four methods."""
    start, steps = baseline(options), options.steps
    sigma = Sigma(alpha=options.alpha, beta=0.1, objective="logit", paths=options.paths, max_steps=options.max_steps)
    return {
        "IG": IntegratedGradients(steps=steps, baseline=start),
        "Guided IG": GuidedIntegratedGradients(steps=steps, baseline=start),
        "IG2": IG2(steps=steps, step_size=0.0078),
        "SIGMA": sigma,
    }


def highest(heat: np.ndarray, count: int) -> np.ndarray:
    """Return bool (H, W), the highest pixels of a map."""
    chosen = np.zeros(heat.size, bool)
    chosen[np.argsort(-heat.ravel(), kind="stable")[:count]] = True
    return chosen.reshape(heat.shape)


def draw(run: BenchmarkRun, scores: ScoreTable, count: int) -> bytes:
    """Return for each of some images a row of maps and a row of binary maps, as a PNG file."""
    places = range(min(count, len(run.evaluated.indices)))
    images, masks = run.load_images([run.evaluated.indices[place] for place in places])
    with styled():
        figure = Figure(figsize=(1.35 * (len(SHOWN) + 1), 2.8 * len(places)))
        axes = figure.subplots(2 * len(places), len(SHOWN) + 1, gridspec_kw={"wspace": 0.04, "hspace": 0.06})
        for place in places:
            gray = image_of(images[place])
            mask = None if masks is None or not masks[place].any() else masks[place] >= 0.5
            area = int(mask.sum()) if mask is not None else int(_UNMARKED * gray[..., 0].size)
            upper, lower = axes[2 * place], axes[2 * place + 1]
            upper[0].imshow(gray, vmin=0, vmax=1)
            upper[0].set_ylabel(label(run.dataset.classes[int(run.evaluated.labels[place])]), fontsize=7)
            lower[0].imshow(gray * 0 + 1 if mask is None else np.repeat(mask[..., None] * 1.0, 3, 2), vmin=0, vmax=1)
            for over, under, name in zip(upper[1:], lower[1:], SHOWN, strict=True):
                heat = scores.arrays[name]["map"][place].astype(float)
                overlay(over, images[place], heat)
                under.imshow(highest(np.abs(heat), area), cmap="gray")
            for axis, title in zip((*upper, *lower), ("image", *SHOWN, "marked", *SHOWN), strict=True):
                bare(axis)
                if mask is not None:
                    axis.contour(mask.astype(float), levels=[0.5], colors=["#00a396"], linewidths=0.7)
                if place == 0 and axis in upper:
                    axis.set_title(title, fontsize=8)
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, draw, write."""
    made = parser(__doc__, images=60)
    made.add_argument("--steps", type=int, default=50, help="number of steps of the other methods")
    made.add_argument("--paths", type=int, default=7, help="number of SIGMA's paths")
    made.add_argument("--alpha", type=float, default=0.005, help="step size of SIGMA's walk down the logit")
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.steps, options.paths, options.max_steps = min(options.images, 3), 3, 2, 3
    provenance, name = Provenance(command("sigma_maps", arguments)), options.name or "sigma_maps"
    asked = settings(options, methods(options), [PerformanceInformation(), Localization()])
    run, tables = run_benchmark(dataclasses.replace(asked, references=3), options.work / name)
    found = [cell for cell in cells(tables) if cell["metric"] in TITLES]
    gains = advantages(tables, "SIGMA", TITLES)
    shown = [title for title in TITLES if any(cell["metric"] == title for cell in found)]
    for model in tables:
        of = {(cell["method"], cell["metric"]): cell for cell in found if cell["model"] == model}
        named = dict.fromkeys(method for method, _ in of)
        rows = [[method, *(interval(of.get((method, metric))) for metric in shown)] for method in named]
        print(f"{model}\n" + table(["method", *(TITLES[metric] for metric in shown)], rows))
    print("\n".join(orders([gain for gain in gains if gain["over"] in SHOWN], "SIGMA", TITLES)))
    kept: dict[str, Any] = {"cells": found, "SIGMA over others": gains, "about": about(run)}
    write_atomically(options.out / f"{name}.png", draw(run, next(iter(tables.values())), 3))
    print(write(options, "sigma_maps", kept, provenance))


if __name__ == "__main__":
    main()
