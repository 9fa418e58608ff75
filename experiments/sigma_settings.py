"""Which settings of SIGMA's walk converge and leave an image recognizable?

    python experiments/sigma_settings.py              # results/sigma_settings.json
    python experiments/sigma_settings.py --model torchvision:mobilenet_v2 --root photographs --images 60 \
        --name sigma_settings_photographs

It uses base models of the built-in datasets (trained as in `robustsigma quickstart`) and their test images, or any
network and photographs that it classifies correctly. For each setting it measures the share of walks that converged,
their steps, the accuracy on the samples, and the distance of the samples from the original images. Values are over all
samples, or over converged ones under "only converged".
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shared.options import parser, uses_builtin_data
from shared.output import command, write
from shared.scores import about
from shared.subjects import Scene

from robustsigma import Classifier, Sigma, SigmaSample
from robustsigma.cli.evaluate import PRESETS
from robustsigma.data.loading import load_batch
from robustsigma.engine.metrics import mean_interval, rmse, ssim
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation.plan import BASE
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.runs.provenance import Provenance

SETTINGS = [
    ("the paper's", Sigma.paper()),
    ("the notebook's", Sigma(alpha=0.5, beta=0.1, epsilon=0.05, objective="prob")),
    ("log p, small steps", Sigma(alpha=0.03, beta=0.1, objective="log_prob")),
    ("log p, large steps", Sigma(alpha=0.1, beta=0.5, objective="log_prob")),
    ("logit, the default", Sigma(alpha=0.01, beta=0.1, objective="logit")),
    ("logit, larger steps", Sigma(alpha=0.03, beta=0.1, objective="logit")),
    ("logit, smaller steps", Sigma(alpha=0.005, beta=0.1, objective="logit")),
    ("logit, smallest steps", Sigma(alpha=0.0025, beta=0.1, objective="logit")),
    ("logit, small probes", Sigma(alpha=0.005, beta=0.02, objective="logit")),
    ("logit, large probes", Sigma(alpha=0.01, beta=0.3, objective="logit")),
    ("logit, adaptive steps", Sigma(beta=0.1, objective="logit", adaptive=(0.001, 0.1))),
    ("logit, Gaussian patterns", Sigma(alpha=0.007, beta=0.1, objective="logit", noise="gaussian")),
    ("logit, Perlin patterns", Sigma(alpha=0.03, beta=0.1, objective="logit", noise="perlin", noise_scale=4)),
]


def measure(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, sigma: Sigma) -> dict[str, Any]:
    """Return what one setting makes of the images."""
    x, y = x.to(classifier.mean.device), y.to(classifier.mean.device)
    made = SigmaSample(sigma)(classifier, x, y, seed=torch.arange(len(x)), return_info=True)
    with classifier.frozen():
        correct = classifier.logits(made.images).argmax(1) == y
    distance = rmse(made.images, x)
    columns = {
        "converged": made.converged.float(),
        "steps": made.steps.float(),
        "accuracy": correct.float(),
        "ssim": ssim(made.images, x),
        "rmse": distance,
        "psnr": -20 * distance.clamp(min=1e-6).log10(),
    }
    columns = {name: values.cpu() for name, values in columns.items()}
    found = {name: as_dict(mean_interval(values.numpy())) for name, values in columns.items()}
    converged = made.converged.cpu()
    if bool(converged.any()):
        kept = ("steps", "ssim", "psnr")
        found["only converged"] = {name: as_dict(mean_interval(columns[name][converged].numpy())) for name in kept}
    return found


def base_model(name: str, folder: Path, fast: bool) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """Return the quickstart's base model, and test images with their labels."""
    settings = dataclasses.replace(PRESETS.load(name), seeds=(0,))
    if fast:
        settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, epochs=1))
    run = RobustnessRun(settings, folder / name, Console(quiet=True))
    run.train(0, run.regimes[0])
    dataset = settings.dataset.split("test")
    x, y = load_batch(dataset, range(20 if fast else 200))
    return run.model(0, BASE).classifier.eval(), x, y


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    made = parser(__doc__, images=200)
    made.add_argument("--datasets", nargs="+", default=["baggage", "mnist5k"], help="built-in datasets")
    made.add_argument("--max-steps", type=int, default=60, help="largest number of steps of SIGMA's walk")
    made.add_argument("--only", type=int, nargs="+", help="indices of the settings to measure, from 0")
    options = made.parse_args(arguments)
    provenance = Provenance(command("sigma_settings", arguments))
    results: dict[str, Any] = {"max_steps": options.max_steps, "torch": torch.__version__, "seed": 0, "datasets": {}}
    tried = [SETTINGS[number] for number in options.only or range(len(SETTINGS))]
    for name, classifier, x, y in subjects(options, results):
        rows = results["datasets"][name] = []
        print(f"{name}, {len(x)} test images: converged, steps, accuracy, SSIM, RMSE, PSNR")
        for title, sigma in tried:
            walk = dataclasses.replace(sigma, paths=1, max_steps=options.max_steps)
            found = measure(classifier, x, y, walk)
            rows.append({"name": title, "settings": repr(walk), **found})
            columns = [found[key]["mean"] for key in ("converged", "steps", "accuracy", "ssim", "rmse", "psnr")]
            print(f"  {title:26}" + "".join(f"{mean:8.3f}" for mean in columns), flush=True)
            path = write(options, "sigma_settings", results, provenance)  # a later interrupt costs one setting
    print(path)


def subjects(
    options: argparse.Namespace, results: dict[str, Any]
) -> Iterator[tuple[str, Classifier, torch.Tensor, torch.Tensor]]:
    """Yield name, network, images and classes; of photographs, keep in the results which they are."""
    if uses_builtin_data(options) and options.model is None:
        for name in options.datasets:
            yield name, *base_model(name, options.work, options.fast)
        return
    scene = Scene(options, "sigma_settings")
    results["about"] = about(scene.run)
    for name, classifier, targets in scene.networks():
        yield name, classifier, scene.images, targets


if __name__ == "__main__":
    main()
