"""SIGMA's figures 2 and 3: the saturated share of a path, and the value of its gradients (Henry et al., 2025).

    python experiments/sigma_path.py                  # results/sigma_path.json and .png

Figure 2 shows one image: the path of Integrated Gradients (IG) soon reaches a plateau of confidence, SIGMA's does not.
Figure 3: gradients from SIGMA's sensitive part have a higher area under the Softmax Information Curve (SIC) than those
from its saturated part, and these a higher one than a random order. Neither figure states numbers.

In this script, a point is saturated if its p is below 10% or above 90% of the image's p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.options import baseline, parser
from shared.output import command, interval, table, write
from shared.scores import about
from shared.subjects import Scene
from shared.walked import Walked, walk
from torch import Tensor

from robustsigma import IntegratedGradients, RandomAttribution, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import MetricContext, PerformanceInformation
from robustsigma.engine.metrics.interval import as_dict, mean_interval, paired_difference
from robustsigma.report.canvas import LINE, QUIET, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

MAPS = ("SIGMA", "sensitive gradients", "saturated gradients", "random order")
PAIRS = ((1, 2), (2, 3), (0, 1), (0, 2))


def of_sigma(walked: Walked, start: float) -> Tensor:
    """Return the magnitude (S,) of each step's part of the attribution: its gradient, scaled to sum to the drop."""
    flat = walked.gradients.double().flatten(1)
    drop = torch.cat([walked.probability.new_tensor([start]), walked.probability[:-1]]) - walked.probability
    total = flat.sum(1)
    return torch.where(total != 0, flat.abs().sum(1) * (drop / torch.where(total != 0, total, 1)).abs(), 0)


def of_line(walked: Walked, image: Tensor) -> Tensor:
    """Return the magnitude (S,) of each point's part of the attribution: its gradient times the way."""
    return ((image - walked.result.endpoint[0]) * walked.gradients).flatten(1).abs().sum(1)


def share(parts: Tensor, chosen: Tensor) -> float | None:
    """Return the chosen part of a sum, or None for a sum of nothing."""
    total = float(parts.sum())
    return float(parts[chosen].sum()) / total if total > 0 else None


def look(
    classifier: Classifier, scene: Scene, targets: Tensor, sigma: Sigma, line: IntegratedGradients
) -> tuple[list[dict[str, Any]], Tensor, tuple[Walked, Walked] | None]:
    """Return how saturated the paths of each image are, the maps (3, n, H, W) of figure 3, and the paths of image 0."""
    found, maps, shown = [], [], None
    for image, target, seed in zip(scene.images, targets.tolist(), scene.seeds.tolist(), strict=True):
        ours = walk(classifier, sigma, image, target, seed, "log_prob")
        theirs = walk(classifier, line, image, target, seed, "prob")
        shown = shown or (ours, theirs)
        start = float(ours.result.confidence[0, 0, 0])
        plateau = {"SIGMA": ~ours.sensitive(start), "IG": ~theirs.sensitive(start)}
        parts = {"SIGMA": of_sigma(ours, start), "IG": of_line(theirs, image)}
        row: dict[str, Any] = {"converged": bool(ours.result.converged.all()), "steps": len(ours.points)}
        for name in ("SIGMA", "IG"):
            row[f"{name}: points"] = share(torch.ones_like(parts[name]), plateau[name])
            row[f"{name}: attribution"] = share(parts[name], plateau[name])
        found.append(row)
        flat = plateau["SIGMA"].reshape(-1, 1, 1, 1)
        halves = [(ours.gradients * chosen).sum(0).abs().sum(0) for chosen in (~flat, flat)]
        maps.append(torch.stack([ours.result.heatmap()[0], *halves]))
    return found, torch.stack(maps, 1), shown


def areas(classifier: Classifier, scene: Scene, targets: Tensor, maps: Tensor) -> np.ndarray:
    """Return the SIC of each map (4, n); NaN for images that are skipped or whose path has no point of a kind."""
    subject = MetricContext(classifier, scene.images, targets, seed=scene.seeds)
    random = RandomAttribution()(classifier, scene.images, targets, seed=scene.seeds).heatmap()
    metric = PerformanceInformation()
    sic = torch.stack([metric(subject, heat).values["sic"] for heat in (*maps, random)])
    empty = torch.cat([maps.flatten(2).sum(2) == 0, torch.zeros(1, maps.shape[1], dtype=torch.bool)])
    return np.asarray(sic.masked_fill(empty, torch.nan))


def summary(rows: Sequence[Mapping[str, Any]], sic: np.ndarray) -> dict[str, Any]:
    """Return means with intervals: of the shares, and of SIC over images that have all four."""
    shares = {}
    for key in rows[0]:
        values = [float(row[key]) for row in rows if row[key] is not None]
        shares[key] = as_dict(mean_interval(values)) if values else None
    whole = sic[:, np.isfinite(sic).all(0)]
    if not whole.shape[1]:
        return {"shares": shares, "sic": {}, "sic, differences": {}}
    gaps = {f"{MAPS[a]} over {MAPS[b]}": as_dict(paired_difference(whole[a], whole[b])) for a, b in PAIRS}
    means = {name: as_dict(mean_interval(values)) for name, values in zip(MAPS, whole, strict=True)}
    return {"shares": shares, "sic": means, "sic, differences": gaps}


def draw(ours: Walked, theirs: Walked) -> bytes:
    """Return the confidence along both paths of one image as a PNG file."""
    with styled():
        figure = Figure(figsize=(6.6, 2.3))
        for axis, walked, title in zip(
            figure.subplots(1, 2, sharey=True), (theirs, ours), ("IG", "SIGMA"), strict=True
        ):
            curve = walked.result.confidence[0, 0].flip(0) if title == "IG" else walked.result.confidence[0, 0]
            axis.plot(curve, color=LINE, marker="o", markersize=2)
            for level in (0.1, 0.9):
                axis.axhline(level * float(ours.result.confidence[0, 0, 0]), color=QUIET, linewidth=0.7, linestyle=":")
            axis.set(
                title=title, xlabel="point of the path, from the baseline" if title == "IG" else "step", ylim=(0, 1)
            )
        figure.axes[0].set_ylabel("p of the class")
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Walk, evaluate, print, draw, write."""
    made = parser(__doc__, images=60)
    made.add_argument("--alpha", type=float, default=0.005, help="step size of SIGMA's walk down the logit")
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    made.add_argument("--steps", type=int, default=50, help="number of steps of Integrated Gradients")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.max_steps, options.steps = min(options.images, 4), 6, 5
    provenance, name = Provenance(command("sigma_path", arguments)), options.name or "sigma_path"
    scene = Scene(options, "sigma_path")
    sigma = Sigma(alpha=options.alpha, beta=0.1, objective="logit", paths=1, max_steps=options.max_steps)
    line = IntegratedGradients(steps=options.steps, rule="midpoint", baseline=baseline(options), score="prob")
    found: dict[str, Any] = {}
    for model, classifier, targets in scene.networks():
        rows, maps, shown = look(classifier, scene, targets, sigma, line)
        found[model] = {**summary(rows, areas(classifier, scene, targets, maps)), "images": rows}
        _say(model, found[model])
        if shown is not None:
            write_atomically(options.out / f"{name}.png", draw(*shown))
    settings = {"SIGMA": repr(sigma), "IG": repr(line)}
    print(write(options, "sigma_path", {**found, "settings": settings, "about": about(scene.run)}, provenance))


def _say(model: str, found: Mapping[str, Any]) -> None:
    print(f"{model}: share that is saturated (the paper's figure 2: much of IG's line, little of SIGMA's path)")
    of = found["shares"]
    kinds = ("points", "attribution")
    print(table(["path", *kinds], [[m, *(interval(of[f"{m}: {kind}"]) for kind in kinds)] for m in ("IG", "SIGMA")]))
    print(f"{model}: SIC (the paper's figure 3: sensitive above saturated above random)")
    print(table(["map", "SIC"], [[name, interval(found["sic"].get(name))] for name in MAPS]))
    for name, gap in found["sic, differences"].items():
        print(f"{name}: {interval(gap)}")


if __name__ == "__main__":
    main()
