"""Do walks on photographs reach zero confidence, at what cost, and do image and map stay as good?

    python experiments/sigma_photographs.py --config mobilenetv2.yaml
    python experiments/sigma_photographs.py --config vit.yaml  # joins the same file

Two settings of SIGMA, with one path of at most 100 steps: the default of `SigmaSample` and `Sigma.photographs()`, whose
settings were chosen on the first `--skip` images, which are left out here. Values per image: whether the walk
converged, its steps, SSIM and RMSE between image and end point, and, of the first `--maps` images, SIC of the map. A
sample costs 3 forward passes a step, a map a backward pass more. Differences are paired over the `--compared` images
that both settings have. Results of other networks in the file are kept, and finished batches in `--work`, a folder for
each network, so an interrupted script resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from shared.options import parser
from shared.output import command, interval, table, write
from shared.scores import about
from shared.subjects import Scene
from torch import Tensor

from robustsigma import Classifier, Sigma, SigmaSample
from robustsigma.engine.metrics import (
    MetricContext,
    PerformanceInformation,
    mean_interval,
    paired_difference,
    rmse,
    share_interval,
    ssim,
)
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

MAX_STEPS = 100
DEFAULT, PRESET = "SigmaSample", "Sigma.photographs()"
COLUMNS = ("converged", "steps", "ssim", "rmse", "sic")


def walked(sigma: Sigma, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor) -> dict[str, list[Any]]:
    """Return the values of each image's walk."""
    made = SigmaSample(sigma)(classifier, images, target, seed=seeds, return_info=True)
    columns = {
        "converged": made.converged.int(),
        "steps": made.steps,
        "ssim": ssim(made.images, images),
        "rmse": rmse(made.images, images),
    }
    return {name: column.tolist() for name, column in columns.items()}


def mapped(sigma: Sigma, classifier: Classifier, images: Tensor, target: Tensor, seeds: Tensor) -> dict[str, list[Any]]:
    """Return the SIC of each image's map, None where it is skipped."""
    heat = sigma(classifier, images, target, seed=seeds).heatmap()
    sic = PerformanceInformation()(MetricContext(classifier, images, target, seed=seeds), heat).values["sic"]
    return {"sic": [None if np.isnan(value) else value for value in sic.tolist()]}


def stored(measure: Callable[..., dict[str, list[Any]]], name: str, sigma: Sigma, scene: Scene,
           network: tuple[str, Classifier, Tensor], rows: range, options: argparse.Namespace,
           ) -> dict[str, np.ndarray]:  # fmt: skip
    """Return what is measured of a setting by column, which is stored batch by batch."""
    model, classifier, targets = network
    found: dict[str, list[Any]] = {}
    for start in range(rows.start, rows.stop, options.batch_size):
        batch = slice(start, min(start + options.batch_size, rows.stop))
        file = f"{model}_{name}_{measure.__name__}_{batch.start}_{batch.stop}.json"
        path = options.work / "sigma_photographs" / file
        if not path.is_file():
            made = measure(sigma, classifier, scene.images[batch], targets[batch], scene.seeds[batch])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"settings": repr(sigma), **made}).encode())
        read = json.loads(path.read_text(encoding="utf-8"))
        if read.pop("settings") != repr(sigma):
            raise ValueError(f"--work: expected results of {sigma!r} in {path}, found others; name another folder")
        for column, part in read.items():
            found.setdefault(column, []).extend(part)
    return {column: np.array(part, dtype=float) for column, part in found.items()}


def summary(of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return means with intervals; of SIC over the images that have a value."""
    finite = {name: column[np.isfinite(column)] for name, column in of.items()}
    columns = {name: as_dict(mean_interval(column)) for name, column in finite.items() if len(column)}
    return {**columns, "converged": as_dict(share_interval(of["converged"]))}


def differences(preset: Mapping[str, np.ndarray], default: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return by how much the preset's values are larger, paired over the images that both have."""
    found = {}
    for name in preset:
        count = min(len(preset[name]), len(default[name]))
        pair = [of[name][:count] for of in (preset, default)]
        both = np.isfinite(pair).all(0)
        if both.any():
            found[name] = as_dict(paired_difference(pair[0][both], pair[1][both]))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Walk, evaluate, print, write."""
    made = parser(__doc__, images=100)
    made.add_argument("--skip", type=int, default=20, help="images on which the settings were chosen")
    made.add_argument("--maps", type=int, default=30, help="number of images whose maps are made")
    made.add_argument("--compared", type=int, default=100, help="number of images that the default is walked on")
    options = made.parse_args(arguments)
    if options.fast:
        options.images, options.skip, options.compared, options.maps = 3, 1, 2, 2
    provenance = Provenance(command("sigma_photographs", arguments))
    first, last = options.skip, options.skip + options.images
    counts = {DEFAULT: min(options.compared, options.images), PRESET: options.images}
    options.images = last
    scene = Scene(options, "sigma_photographs", references=1)
    path: Path = options.out / f"{options.name or 'sigma_photographs'}.json"
    networks = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.is_file() else {}
    for network in scene.networks():
        settings = {DEFAULT: SigmaSample().sigma, PRESET: Sigma.photographs()}
        steps = 2 if options.fast else MAX_STEPS
        sigmas = {name: dataclasses.replace(each, paths=1, max_steps=steps) for name, each in settings.items()}
        of = {}
        for name, sigma in sigmas.items():
            rows = range(first, min(first + counts[name], len(scene.images)))
            few = rows[: options.maps]
            of[name] = {**stored(walked, name, sigma, scene, network, rows, options),
                        **stored(mapped, name, sigma, scene, network, few, options)}  # fmt: skip
        networks[network[0]] = {
            "settings": {name: repr(sigma) for name, sigma in sigmas.items()},
            "means": {name: summary(columns) for name, columns in of.items()},
            "preset minus default": differences(of[PRESET], of[DEFAULT]),
            "skipped": first,
            "about": about(scene.run),
            "run": provenance.record(),
        }
        path = write(options, "sigma_photographs", {"networks": networks}, provenance)
    print(shown(networks))
    print(path)


def shown(networks: Mapping[str, Any]) -> str:
    """Return the table of the results."""
    rows = []
    for name, found in networks.items():
        rows += [[name, setting, *(interval(means.get(column), 2) for column in COLUMNS)]
                 for setting, means in found["means"].items()]  # fmt: skip
        gains = found["preset minus default"]
        rows.append([name, "difference", *(interval(gains.get(column), 2) for column in COLUMNS)])
    return table(["network", "setting", *COLUMNS], rows)


if __name__ == "__main__":
    main()
