"""Measure what compiled passes save on small networks: python experiments/compiled_passes.py.

FGSM, PGD with 10 steps and SIGMA samples are timed with `Classifier(compile=True)` and without it, beside torchattacks'
FGSM and PGD of the same network, on a small CNN (64x64) and a ResNet-18 for CIFAR (32x32), in batches of 128 and 512.
Efficiency is the time of the network passes that an attack needs, made by the compiled network on its own, over the
attack's time. All times of a row are measured in one run by torch.utils.benchmark. Meant for a GPU, where passes of
small networks consist of overhead; on a CPU it takes long and shows little.

Prints a line for each row and writes compiled_passes_DEVICE.json to --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torchvision.models import resnet18

from robustsigma import FGSM, PGD, Classifier, Perturbation, Sigma, SigmaSample, TorchAttack
from robustsigma.engine.device import best_device
from robustsigma.models import SmallCNN
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

EPS = 8 / 255
WALK = Sigma(alpha=0.01, beta=0.1, objective="logit", paths=1, max_steps=20)
# The attack, and the (forward, backward) passes that it needs; a walk's depend on the images and are counted.
ATTACKS: dict[str, tuple[Perturbation, tuple[int, int] | None]] = {
    "FGSM": (FGSM(EPS), (1, 1)),
    "PGD": (PGD(EPS, steps=10), (10, 10)),
    "SIGMA samples": (SigmaSample(WALK), None),
}
PEERS = {
    "FGSM": TorchAttack("FGSM", {"eps": EPS}),
    "PGD": TorchAttack("PGD", {"eps": EPS, "steps": 10, "random_start": False}),
}


def small_cnn() -> nn.Module:
    """Return the CNN of the built-in scans."""
    return SmallCNN(3, 10)


def cifar_resnet18() -> nn.Module:
    """Return a ResNet-18 whose stem keeps the size of 32x32 images."""
    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small CNN": (small_cnn, 64),
    "ResNet-18": (cifar_resnet18, 32),
}


def seconds(run: Callable[[], Any], budget: float) -> float:
    """Return the median seconds of a call; the first two calls, which compile, are not counted."""
    run()
    run()
    return float(Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=budget).median)


def limit(classifier: Classifier, images: Tensor, labels: Tensor, passes: tuple[int, int], budget: float) -> float:
    """Return the seconds of the passes alone."""
    forwards, backwards = passes
    with classifier.frozen():
        gradient = seconds(lambda: classifier.loss_gradient(images, labels), budget)
        forward = seconds(lambda: classifier.logits(images), budget) if forwards > backwards else 0.0
    return backwards * gradient + (forwards - backwards) * forward


def measure(net: nn.Module, size: int, batch: int, budget: float) -> dict[str, Any]:
    """Return a row for each attack on one network and batch size."""
    device = best_device()
    net = net.eval().to(device)
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    plain, compiled = Classifier(net), Classifier(net, compile=True)
    with plain.frozen():
        labels = plain.logits(images).argmax(1)
    seeds = torch.arange(batch, device=device)
    rows = {}
    for name, (attack, passes) in ATTACKS.items():
        if passes is None:
            walked = WALK(plain, images, labels, seed=seeds)
            passes = (int(walked.forwards.sum()) // batch, int(walked.backwards.sum()) // batch)
        ours = seconds(lambda attack=attack: attack(compiled, images, labels, seed=seeds), budget)
        row = {
            "milliseconds": 1e3 * ours,
            "efficiency": limit(compiled, images, labels, passes, budget) / ours,
            "uncompiled": seconds(lambda attack=attack: attack(plain, images, labels, seed=seeds), budget) / ours,
        }
        if name in PEERS and find_spec("torchattacks"):
            row["torchattacks"] = (
                seconds(lambda name=name: PEERS[name](plain, images, labels, seed=seeds), budget) / ours
            )
        rows[name] = row
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="numbers of images in a batch")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="networks")
    parser.add_argument("--seconds", type=float, default=1.0, help="shortest time for which each call is repeated")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    options = parser.parse_args(arguments)
    provenance, found = Provenance("python experiments/compiled_passes.py"), {}
    for name in options.networks:
        make, size = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = make()
        for batch in options.batches:
            found[f"{name}, {batch} images"] = rows = measure(net, size, batch, options.seconds)
            for attack, row in rows.items():
                numbers = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
                print(f"{name}, {batch} images, {attack}: {numbers}", flush=True)
    text = json.dumps({"rows": found, "provenance": provenance.record()}, indent=1) + "\n"
    print(write_atomically(options.out / f"compiled_passes_{best_device().type}.json", text.encode()))


if __name__ == "__main__":
    main()
