"""SIGMA's supplement A3 to A6: patterns, epsilon, beta, alpha, path averaging and cost (Henry et al., 2025).

    python experiments/sigma_parameters.py            # results/sigma_parameters.json and .png

The paper shows maps of single images: the pattern hardly matters (figure 11); stopping early leaves the map incomplete,
and continuing below 1% adds nothing (figure 13); beta from 0.01 to 0.5 and alpha up to 1 give stable maps (figure 12);
more than 7 paths add little (figure 14). Table 3 has the seconds per image. This script changes one setting at a time,
evaluates it, and compares its maps with those of the reference setting ("agreement", a rank correlation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from shared.options import baseline, parser, settings
from shared.output import command, interval, table, write
from shared.scores import about, advantages, cells, run_benchmark

from robustsigma import IG2, Attributor, GuidedIntegratedGradients, IntegratedGradients, Sigma
from robustsigma.benchmarking.table import ScoreTable
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.metrics import Cost, InsertionDeletion, PerformanceInformation
from robustsigma.engine.metrics.interval import as_dict, mean_interval
from robustsigma.report.canvas import LINE, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

MIDDLE = "middle"
METRICS = {"difference": "Insertion \u2212 deletion", "sic": "SIC", "forwards": "Forward passes", "seconds": "Seconds"}
# Seconds for an image on an RTX 3090, one path, 200 steps of the others: ImageNet, Disease-XAI, Security-XAI.
PAPER_SECONDS = {
    "IG": (5.25, 0.37, 2.49),
    "Guided IG": (81.69, 4.86, 42.85),
    "IG2": (20.52, 9.72, 91.30),
    "SIGMA": (39.75, 8.02, 15.78),
}


def variants(middle: Sigma) -> dict[str, Sigma]:
    """Return the settings of each section, in which one thing differs from the middle."""

    def other(**changed: Any) -> Sigma:
        return dataclasses.replace(middle, **changed)

    return {
        MIDDLE: middle,
        "pattern gaussian": other(noise="gaussian"),
        "pattern uniform": other(noise="uniform"),
        **{f"pattern perlin {scale}": other(noise="perlin", noise_scale=scale) for scale in (2, 4, 8, 16)},
        **{f"epsilon {_words(epsilon)}": other(epsilon=epsilon) for epsilon in (0.9, 0.5, 0.1, 0.001, 0.0001)},
        **{f"beta {_words(beta)}": other(beta=beta) for beta in (0.01, 0.03, 0.3, 0.5, 1.0)},
        **{f"alpha times {_words(by)}": other(alpha=by * middle.alpha) for by in (0.3, 3, 10)},
        **{f"paths {count}": other(paths=count) for count in (3, 7, 20)},
    }


def others(start: BaselineName, steps: int) -> dict[str, Attributor]:
    """Return the methods of the paper's table 3, for their cost."""
    return {
        "IG": IntegratedGradients(steps=steps, baseline=start),
        "Guided IG": GuidedIntegratedGradients(steps=steps, baseline=start),
        "IG2": IG2(steps=steps),
    }


def _words(value: float) -> str:
    return f"{value:g}".replace(".", "_")


def agreement(scores: ScoreTable) -> list[dict[str, Any]]:
    """Return the rank correlation of each setting's maps with those of the middle."""
    middle = scores.arrays[MIDDLE]["map"]
    found = []
    for method, arrays in scores.arrays.items():
        pairs = zip(np.abs(arrays["map"]), np.abs(middle), strict=True)
        moving = [(a, b) for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
        values = [float(spearmanr(a.ravel(), b.ravel()).statistic) for a, b in moving]
        found.append({"method": method, **(as_dict(mean_interval(values)) if values else {})})
    return found


def draw(found: Mapping[tuple[str, str], Mapping[str, Any]], names: list[str]) -> bytes:
    """Return insertion minus deletion of every setting as a PNG file."""
    of = [found[name, "difference"] for name in names]
    with styled():
        figure = Figure(figsize=(6.2, 0.2 * len(names) + 0.6))
        axis = figure.subplots()
        middle = [cell["mean"] for cell in of]
        whiskers = [[cell["mean"] - cell["low"] for cell in of], [cell["high"] - cell["mean"] for cell in of]]
        axis.errorbar(middle, range(len(names)), xerr=whiskers, fmt="o", color=LINE, markersize=3, linewidth=0.9)
        axis.set_yticks(range(len(names)), [name.replace("_", ".") for name in names], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlabel(METRICS["difference"])
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print, draw, write."""
    made = parser(__doc__, images=60)
    made.add_argument(
        "--alpha", type=float, default=0.005, help="step size of the reference setting, which descends the logit"
    )
    made.add_argument("--beta", type=float, default=0.1, help="size of the probes of the reference setting")
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    made.add_argument(
        "--steps", type=int, default=200, help="number of steps of the other methods whose cost is compared"
    )
    made.add_argument(
        "--pixels",
        type=int,
        help="number of pixels that insertion and deletion show at a time; the image width by default",
    )
    made.add_argument("--only", nargs="+", help="first letters of the names of settings to measure")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.max_steps, options.steps = min(options.images, 3), 2, 2
    provenance, name = Provenance(command("sigma_parameters", arguments)), options.name or "sigma_parameters"
    middle = Sigma(alpha=options.alpha, beta=options.beta, objective="logit", paths=1, max_steps=options.max_steps)
    methods: dict[str, Attributor] = {**variants(middle), **others(baseline(options), options.steps)}
    if options.only:
        methods = {key: of for key, of in methods.items() if key == MIDDLE or key.startswith(tuple(options.only))}
    metrics = [InsertionDeletion(step=options.pixels), PerformanceInformation(), Cost()]
    asked = dataclasses.replace(settings(options, methods, metrics), references=4)
    run, tables = run_benchmark(asked, options.work / name)
    found, gains, same = cells(tables), advantages(tables, MIDDLE, ["difference", "sic"]), []
    for model, scores in tables.items():
        of = {(cell["method"], cell["metric"]): cell for cell in found if cell["model"] == model}
        close = {cell["method"]: cell for cell in agreement(scores)}
        same += [{"model": model, **cell} for cell in close.values()]
        converged = {method: scores.note(method, "converged") for method in scores.arrays}
        rows = [
            [
                method.replace("_", "."),
                f"{converged[method]:.2f}",
                interval(close[method], 2),
                *(interval(of.get((method, key)), 2) for key in METRICS),
            ]
            for method in scores.arrays
        ]
        print(f"{model}\n" + table(["setting", "converged", "agreement with the middle", *METRICS.values()], rows))
        write_atomically(options.out / f"{name}.png", draw(of, [m for m in scores.arrays if (m, "difference") in of]))
    print("seconds in the paper's table 3 (ImageNet, Disease-XAI, Security-XAI):", PAPER_SECONDS)
    kept = {"cells": found, f"{MIDDLE} over others": gains, "agreement": same, "paper": {"seconds": PAPER_SECONDS}}
    print(write(options, "sigma_parameters", {**kept, "about": about(run)}, provenance))


if __name__ == "__main__":
    main()
