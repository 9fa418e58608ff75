"""SIGMA's figure 9: the map and its standard error over the number of paths (Henry et al., 2025, section 5).

    python experiments/sigma_bounds.py                # results/sigma_bounds.json and .png

The paper shows one goldfish with 20, 200 and 2,000 paths, without numbers: with more paths, the map gets cleaner and
its error smaller. It defines the error as the standard deviation over paths divided by the square root of n. This
script measures the error over n on some images, and how often the mean of many other paths lies within 1.96 errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.options import parser
from shared.output import command, interval, table, write
from shared.scores import about
from shared.subjects import Scene
from torch import Tensor

from robustsigma import Sigma
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics.interval import as_dict, mean_interval
from robustsigma.report.canvas import LINE, bare, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

KINDS = ("relative error", "covered", "correlation with other paths")
_PATHS_AT_ONCE = 40


def paths(classifier: Classifier, sigma: Sigma, image: Tensor, target: int, seed: int, count: int) -> Tensor:
    """Return the maps of as many paths of one image, (count, H, W)."""
    seeds = noise.fold(torch.full((count,), seed), "path", torch.arange(count))
    maps = [
        sigma(classifier, image.expand(len(part), -1, -1, -1), target, seed=part).heatmap()
        for part in seeds.split(_PATHS_AT_ONCE)
    ]
    return torch.cat(maps)


def spread(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of maps (n, H, W) and its standard error."""
    return maps.mean(0), maps.std(0) / len(maps) ** 0.5


def measure(maps: Tensor, others: Tensor) -> dict[str, float]:
    """Return the relative error of the mean of maps, and how it compares with the mean of other paths' maps."""
    (mean, error), (theirs, their_error) = spread(maps), spread(others)
    inside = (mean - theirs).abs() <= 1.96 * (error.square() + their_error.square()).sqrt()
    centered = (mean - mean.mean()).flatten(), (theirs - theirs.mean()).flatten()
    similar = torch.nn.functional.cosine_similarity(*centered, dim=0)
    relative = error.norm() / mean.norm().clamp(min=1e-30)
    return dict(zip(KINDS, map(float, (relative, inside.float().mean(), similar)), strict=True))


def draw(maps: Tensor, counts: Sequence[int]) -> bytes:
    """Return the mean map of each number of paths, with its error along the row of the peak, as a PNG file."""
    top = maps.mean(0)
    row, most = int(top.amax(1).argmax()), float(top.flatten().quantile(0.995))
    with styled():
        figure = Figure(figsize=(2.0 * len(counts), 3.2))
        axes = figure.subplots(2, len(counts), squeeze=False, sharey="row", gridspec_kw={"height_ratios": [2, 1]})
        for (above, below), count in zip(axes.T, counts, strict=True):
            mean, error = (part.numpy() for part in spread(maps[:count]))
            above.imshow(mean, cmap="magma", vmin=0, vmax=most)
            above.axhline(row, color="white", linewidth=0.6, linestyle=":")
            above.set_title(f"{count} paths", fontsize=8)
            bare(above)
            across = np.arange(mean.shape[1])
            below.plot(across, mean[row], color=LINE, linewidth=0.8)
            below.fill_between(across, (mean - error)[row], (mean + error)[row], color="#7a3f9d", alpha=0.4)
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Walk, measure, print, draw, write."""
    made = parser(__doc__, images=10)
    made.add_argument("--paths", type=int, nargs="+", default=(5, 20, 80, 320), help="increasing numbers of paths")
    made.add_argument("--alpha", type=float, default=0.005, help="step size of SIGMA's walk down the logit")
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.paths, options.max_steps = min(options.images, 2), (3, 6), 3
    provenance, name = Provenance(command("sigma_bounds", arguments)), options.name or "sigma_bounds"
    scene, counts = Scene(options, "sigma_bounds"), options.paths
    sigma = Sigma(alpha=options.alpha, beta=0.1, objective="logit", paths=1, max_steps=options.max_steps)
    found: dict[str, Any] = {}
    for model, classifier, targets in scene.networks():
        rows: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        for place, (image, target, seed) in enumerate(
            zip(scene.images, targets.tolist(), scene.seeds.tolist(), strict=True)
        ):
            maps, others = (paths(classifier, sigma, image, target, seed + part, counts[-1]) for part in (0, 1))
            for count in counts:
                rows[count].append(measure(maps[:count], others))
            if place == 0:
                write_atomically(options.out / f"{name}.png", draw(maps, counts))
        found[model] = [
            {"paths": n, **{kind: as_dict(mean_interval([row[kind] for row in of])) for kind in KINDS}}
            for n, of in rows.items()
        ]
        _say(model, found[model])
    print(write(options, "sigma_bounds", {**found, "settings": repr(sigma), "about": about(scene.run)}, provenance))


def _say(model: str, rows: Sequence[Mapping[str, Any]]) -> None:
    print(
        f"{model} (the paper's figure 9: 20, 200 and 2,000 paths of one image, without numbers; 0.95 should be covered)"
    )
    first = rows[0]["relative error"]["mean"] * rows[0]["paths"] ** 0.5
    lines = [
        [str(row["paths"]), *(interval(row[kind]) for kind in KINDS), f"{first / row['paths'] ** 0.5:.3f}"]
        for row in rows
    ]
    print(table(["paths", *KINDS, "error from the first line's and the root of n"], lines))


if __name__ == "__main__":
    main()
