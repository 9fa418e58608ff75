"""SIGMA's figure 4: where its paths lie among the classes, seen in the penultimate layer (Henry et al., 2025).

    python experiments/sigma_tsne.py                  # results/sigma_tsne.json and .png; needs scikit-learn

The paper shows a t-SNE with the path of one goldfish, without numbers: the end is predicted as another class, "yet
outside its cluster", unlike those of IG2, which lead into a class. t-SNE does not preserve distances, so this script
measures them in the layer itself: the distance from a path's end to the nearest image of its predicted class, divided
by the median distance of that class's images to their nearest neighbor. An image of the class has a value of about 1,
and a larger value is outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.options import parser
from shared.output import command, interval, table, write
from shared.scores import about
from shared.subjects import Scene
from shared.walked import walk
from torch import Tensor

from robustsigma import IG2, Sigma
from robustsigma.engine.attributors.ig2 import negative_feature_distance
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics.interval import as_dict, mean_interval
from robustsigma.report.canvas import INK, WRONG, png, styled
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance


def distances(classifier: Classifier, points: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (P, R) of points to images in the penultimate layer, and the predicted classes (P,)."""
    with classifier.frozen():
        classes = classifier.logits(images[:1]).shape[1]
        with negative_feature_distance(classifier, None, images, classes) as (tapped, _):
            seen = tapped.logits(points)
    return (-seen[:, classes:]).clamp(min=0).sqrt(), seen[:, :classes].argmax(1)


def outside(away: Tensor, predicted: Tensor, among: Tensor, targets: Tensor) -> list[float]:
    """Return how far each point is outside the class that it is taken for.

    Args:
        away: (P, R) distances of points to images.
        predicted: (P,) predicted classes; one without two images has no number.
        among: (R, R) distances of images.
        targets: (R,) classes of images.
    """
    found = []
    nearest = among.fill_diagonal_(torch.inf)
    for row, label in zip(away, predicted.tolist(), strict=True):
        members = (targets == label).nonzero()[:, 0]
        if len(members) > 1:
            usual = nearest[members][:, members].amin(1).median()
            found.append(float(row[members].min() / usual.clamp(min=1e-12)))
    return found


def draw(among: np.ndarray, images: int, targets: Tensor, path: int, names: list[str], seed: int) -> bytes:
    """Return the t-SNE of images, of which each has a class, and of one path, as a PNG file."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(among) - 1) / 3)
    embed = TSNE(metric="precomputed", init="random", perplexity=perplexity, random_state=seed)
    places = embed.fit_transform(among)
    with styled():
        figure = Figure(figsize=(4.4, 3.8))
        axis = figure.subplots()
        for label in targets.unique().tolist():
            of = places[:images][np.asarray(targets == label)]
            axis.scatter(*of.T, s=9, alpha=0.6, label=names[label][:18])
        walked = places[images : images + path]
        axis.plot(*walked.T, color=INK, linewidth=0.8, marker=".", markersize=3, label="SIGMA's path")
        axis.scatter(*walked[-1], color=WRONG, marker="x", zorder=3, label="its end")
        axis.set(xticks=[], yticks=[])
        if len(targets.unique()) <= 10:
            axis.legend(fontsize=6)
        return png(figure)


def main(arguments: list[str] | None = None) -> None:
    """Walk, measure, print, draw, write."""
    made = parser(__doc__, images=300)
    made.add_argument("--explained", type=int, default=50, help="number of evaluated images whose paths are computed")
    made.add_argument("--max-steps", type=int, default=100, help="largest number of steps of SIGMA's walk")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.explained, options.max_steps = min(options.images, 12), 3, 4
    provenance, name = Provenance(command("sigma_tsne", arguments)), options.name or "sigma_tsne"
    scene = Scene(options, "sigma_tsne")
    sigma = Sigma(alpha=0.005, beta=0.1, objective="logit", paths=1, max_steps=options.max_steps)
    ig2 = IG2(steps=5 if options.fast else 50, step_size=0.0078, references=scene.references)
    found: dict[str, Any] = {}
    for model, classifier, targets in scene.networks():
        few = slice(0, options.explained)
        x, y, seeds = scene.images[few], targets[few], scene.seeds[few]
        walks = sigma(classifier, x, y, seed=seeds)
        theirs = ig2(classifier, x, y, seed=seeds)
        among, _ = distances(classifier, scene.images, scene.images)
        among.fill_diagonal_(torch.inf)
        clean = [
            v
            for i, label in enumerate(targets.tolist())
            for v in outside(among[i][None], torch.tensor([label]), among.clone(), targets)
        ]
        rows: dict[str, list[float]] = {"clean images": clean}
        converged = walks.converged[:, 0]
        for title, ends in (("SIGMA's ends", walks.endpoint[converged]), ("IG2's ends", theirs.endpoint)):
            away, predicted = distances(classifier, ends, scene.images) if len(ends) else (among[:0], targets[:0])
            rows[title] = outside(away, predicted, among.clone(), targets)
        found[model] = {
            "outside": {title: as_dict(mean_interval(values)) if values else {} for title, values in rows.items()},
            "share outside twice the usual distance": {
                title: as_dict(mean_interval([float(v > 2) for v in values])) if values else {}
                for title, values in rows.items()
            },
            "converged": float(converged.float().mean()),
        }
        _say(model, found[model])
        shown = int(converged.nonzero()[0, 0]) if bool(converged.any()) else 0
        path = walk(classifier, sigma, x[shown], int(y[shown]), int(seeds[shown]), "log_prob").points
        every = torch.cat([scene.images, path])
        table_of, _ = distances(classifier, every, every)
        matrix = ((table_of + table_of.T) / 2).fill_diagonal_(0).numpy()
        picture = draw(matrix, len(scene.images), targets, len(path), list(scene.run.dataset.classes), options.seed)
        write_atomically(options.out / f"{name}.png", picture)
    kept = {**found, "settings": {"SIGMA": repr(sigma), "IG2": f"{ig2.steps} steps"}, "about": about(scene.run)}
    print(write(options, "sigma_tsne", kept, provenance))


def _say(model: str, found: Mapping[str, Any]) -> None:
    print(f"{model}: distance to the nearest image of the class that is predicted, over what is usual in that class")
    print("(the paper's figure 4, without numbers: SIGMA's ends are outside, IG2's are led into a class)")
    kinds = ("outside", "share outside twice the usual distance")
    print(
        table(
            ["points", *kinds], [[name, *(interval(found[kind][name]) for kind in kinds)] for name in found["outside"]]
        )
    )


if __name__ == "__main__":
    main()
