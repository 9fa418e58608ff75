"""Which settings of SIGMA's walk arrive, and leave an image recognisable: python experiments/sigma_settings.py.

A base model of an embedded dataset (trained as `robustsigma quickstart` does) and its test images; for each setting the
share of walks that arrived, their steps, the accuracy on the samples, and the distance to the untouched images.
Writes results/sigma_settings.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from robustsigma import Classifier, Sigma, SigmaSample
from robustsigma.data.loading import take
from robustsigma.engine.metrics import mean_interval, rmse, ssim
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation import preset
from robustsigma.evaluation.run import BASE, Run
from robustsigma.files import write_atomically

SETTINGS = [
    ("the paper's", Sigma(alpha=0.1, beta=0.5, objective="prob")),
    ("the notebook's", Sigma(alpha=0.5, beta=0.1, epsilon=0.05, objective="prob")),
    ("log p, small steps", Sigma(alpha=0.03, beta=0.1, objective="log_prob")),
    ("log p, large steps", Sigma(alpha=0.1, beta=0.5, objective="log_prob")),
    ("logit, the default", Sigma(alpha=0.01, beta=0.1, objective="logit")),
    ("logit, larger steps", Sigma(alpha=0.03, beta=0.1, objective="logit")),
    ("logit, smaller steps", Sigma(alpha=0.005, beta=0.1, objective="logit")),
    ("logit, Gaussian patterns", Sigma(alpha=0.007, beta=0.1, objective="logit", noise="gaussian")),
    ("logit, Perlin patterns", Sigma(alpha=0.03, beta=0.1, objective="logit", noise="perlin", noise_scale=4)),
]


def measure(classifier: Classifier, x: torch.Tensor, y: torch.Tensor, sigma: Sigma) -> dict[str, Any]:
    """Return what one setting makes of the images."""
    made = SigmaSample(sigma).apply(classifier, x, y, seed=torch.arange(len(x)))
    with classifier.frozen():
        correct = classifier.logits(made.images).argmax(1) == y
    columns = {
        "converged": made.converged.float(),
        "steps": made.steps.float(),
        "accuracy": correct.float(),
        "ssim": ssim(made.images, x),
        "rmse": rmse(made.images, x),
    }
    return {name: as_dict(mean_interval(values.numpy())) for name, values in columns.items()}


def base_model(name: str, folder: Path, fast: bool) -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """Return the quickstart's base model, and test images with their labels."""
    settings = dataclasses.replace(preset(name), seeds=(0,))
    if fast:
        settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, epochs=1))
    run = Run(settings, folder / name, Console(quiet=True))
    run.train(0, run.regimes[0])
    dataset = settings.source.split("test")
    x, y = take(dataset, range(20 if fast else 200))
    return run.model(0, BASE).classifier.eval(), x, y


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", nargs="+", default=["baggage", "mnist5k"])
    parser.add_argument("--work", type=Path, default=Path("runs/sigma_settings"), help="folder of the base models")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"max_steps": options.max_steps, "torch": torch.__version__, "seed": 0, "datasets": {}}
    for name in options.datasets:
        classifier, x, y = base_model(name, options.work, options.fast)
        rows = results["datasets"][name] = []
        print(f"{name}, {len(x)} test images: converged, steps, accuracy, SSIM, RMSE")
        for title, sigma in SETTINGS:
            walk = dataclasses.replace(sigma, paths=1, max_steps=options.max_steps)
            found = measure(classifier, x, y, walk)
            rows.append({"name": title, "settings": repr(walk), **found})
            print(f"  {title:26}" + "".join(f"{found[key]['mean']:8.3f}" for key in found), flush=True)
    print(write_atomically(options.out / "sigma_settings.json", (json.dumps(results, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
