"""Measure the cost of robust training relative to plain training: python experiments/training_step.py.

A step is the Trainer's work on one batch: perturb it on the device, forward, backward, optimizer. Steps are timed in
turns, so that other work on the machine affects all alike. The script times the plain step; a quarter of the batch with
Gaussian noise, or FGSM with a random start; the mixed step (noise, FGSM and SIGMA samples, a twelfth of the batch each)
with and without a sample cache; and SIGMA samples on a quarter, with and without a cache. All networks start from
the same weights and train, so that walks and the reuse of samples are as in training. The first epochs, in which a
cache is empty, are left out.

Writes results/training_step.json: medians over steps and their ratio to the plain step.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from robustsigma import (
    FGSM,
    Classifier,
    GaussianNoise,
    Identity,
    Mixture,
    MixtureComponent,
    Perturbation,
    Sigma,
    SigmaSample,
)
from robustsigma.data import Baggage, DatasetSpec, MNIST5k
from robustsigma.engine import noise
from robustsigma.engine.device import best_device, wait
from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.lightning import Batch
from robustsigma.lightning.loaders import KeyedDataset, KeySampler, ResumableLoader
from robustsigma.lightning.sample_caches import SampleCaches
from robustsigma.models import network
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

SHARE = 0.25


def regimes(eps: float, std: float, alpha: float, max_age: int, max_steps: int) -> dict[str, Perturbation]:
    """Return the training perturbations that are timed; the first is the plain step."""
    walk = Sigma(alpha=alpha, beta=0.1, objective="logit", paths=1, max_steps=max_steps)
    gaussian, fgsm = GaussianNoise(std), FGSM(eps, random_start=True)
    fresh, cached = SigmaSample(walk), SigmaSample(walk, cache=SampleCache(max_age=max_age))

    def mixed(sigma: SigmaSample) -> Mixture:
        return Mixture([MixtureComponent(part, SHARE / 3) for part in (gaussian, fgsm, sigma)])

    return {
        "plain": Identity(),
        "gaussian": Mixture({gaussian: SHARE}),
        "fgsm": Mixture({fgsm: SHARE}),
        "mixed": mixed(fresh),
        "mixed, cached": mixed(cached),
        "sigma": Mixture({fresh: SHARE}),
        "sigma, cached": Mixture({cached: SHARE}),
    }


class Trained:
    """A network in training under one perturbation."""

    def __init__(self, classifier: Classifier, perturbation: Perturbation, seed: int) -> None:
        self.classifier, self.perturbation, self.seed = copy.deepcopy(classifier).train(), perturbation, seed
        self.optimizer = torch.optim.AdamW(self.classifier.parameters(), lr=1e-3, weight_decay=1e-3)
        self.caches = SampleCaches()
        self.seconds: list[float] = []
        self.accounts: list[list[int]] = []

    def step(self, batch: Batch, epoch: int) -> None:
        """Train on a batch, and note the time."""
        device = batch.images.device
        wait(device)
        start = time.perf_counter()
        seeds = noise.image_seeds(self.seed, "train", "train", epoch, batch.indices)
        made, account = self.caches.apply(self.perturbation, self.classifier, batch, seeds=seeds, epoch=epoch)
        loss = F.cross_entropy(self.classifier(made.images), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        wait(device)
        self.seconds.append(time.perf_counter() - start)
        self.accounts.append([*account.totals.tolist(), int(made.attempted.sum()), int(made.steps.sum())])


def pretrained(source: DatasetSpec, strides: list[int], options: argparse.Namespace) -> Classifier:
    """Return a network trained without perturbation: where retraining starts from."""
    torch.default_generator.manual_seed(0)
    net = network("small_cnn", source.shape[0], len(source.classes), {"strides": strides})
    clean = Trained(Classifier(net, mean=[0.5], std=[0.25]).to(best_device()), Identity(), 0)
    for epoch in range(options.pretraining):
        for batch in batches(source, epoch, options):
            clean.step(batch, epoch)
    return clean.classifier


def batches(source: DatasetSpec, epoch: int, options: argparse.Namespace) -> list[Batch]:
    """Return the batches of an epoch, of the same images in each, on the device, so that loading is not timed."""
    device = best_device()
    sampler = KeySampler(range(options.steps * options.batch_size), shuffle=True, seed=0)
    sampler.set_epoch(epoch)
    found = ResumableLoader(
        KeyedDataset(source.split("train"), None, 0), sampler=sampler, batch_size=options.batch_size
    )
    return [batch.to(device) for batch in found]


def measure(
    classifier: Classifier, source: DatasetSpec, kinds: dict[str, Perturbation], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the cost of each kind of step, in a batch size."""
    trained = {name: Trained(classifier, perturbation, 0) for name, perturbation in kinds.items()}
    warm_up = 0
    for epoch in range(options.epochs):
        for batch in batches(source, epoch, options):
            for each in trained.values():
                each.step(batch, epoch)
        if epoch < options.warm_up:
            warm_up = len(trained["plain"].seconds)
    plain = statistics.median(trained["plain"].seconds[warm_up:])
    rows = {}
    for name, each in trained.items():
        whole, late = (each.seconds[at:] for at in (min(2, warm_up), warm_up))
        totals = [sum(column) for column in zip(*each.accounts[warm_up:], strict=True)]
        requested, hits, expired, stale, ages, attempted, steps = totals
        rows[name] = {
            "milliseconds": 1e3 * statistics.median(late),
            "ratio": statistics.median(late) / plain,
            "ratio_of_sums": sum(late) / sum(trained["plain"].seconds[warm_up:]),
            "ratio_with_the_first_epochs": statistics.median(whole) / plain,
            "steps_of_a_walk": steps / attempted if attempted else None,
            "hit_rate": hits / requested if requested else None,
            "expired": expired / requested if requested else None,
            "stale": stale / requested if requested else None,
            "mean_age": ages / hits if hits else None,
        }
    return {"timed_steps": len(trained["plain"].seconds) - warm_up, "steps": rows}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=["baggage", "mnist5k"],
        choices=["baggage", "mnist5k"],
        help="built-in datasets",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="number of images in a batch")
    parser.add_argument("--epochs", type=int, default=8, help="number of epochs")
    parser.add_argument("--warm-up", type=int, default=2, help="number of first epochs that are not counted")
    parser.add_argument("--steps", type=int, default=8, help="number of batches per epoch")
    parser.add_argument("--pretraining", type=int, default=15, help="number of earlier epochs without perturbation")
    parser.add_argument("--max-age", type=int, default=5, help="largest age of a cached sample in epochs")
    parser.add_argument("--max-steps", type=int, default=20, help="largest number of steps of SIGMA's walk")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")
    options = parser.parse_args(arguments)
    provenance = Provenance("python experiments/training_step.py")
    baggage = Baggage(size=16 if options.fast else 64, train=options.steps * options.batch_size, val=5, test=5)
    every: dict[str, tuple[DatasetSpec, list[int], dict[str, Any]]] = {
        "baggage": (baggage, [2, 2, 2, 1], {"eps": 2 / 255, "std": 0.1, "alpha": 0.01}),
        "mnist5k": (MNIST5k(), [1, 2, 2, 1], {"eps": 0.1, "std": 0.3, "alpha": 0.03}),
    }
    settings = {
        name: getattr(options, name)
        for name in ("batch_size", "epochs", "warm_up", "steps", "pretraining", "max_age", "max_steps")
    }
    results: dict[str, Any] = {"settings": settings, "datasets": {}}
    for name in options.datasets:
        source, strides, strengths = every[name]
        kinds = regimes(**strengths, max_age=options.max_age, max_steps=options.max_steps)
        classifier = pretrained(source, strides, options)
        found = results["datasets"][name] = measure(classifier, source, kinds, options)
        found["perturbations"] = {kind: repr(perturbation) for kind, perturbation in kinds.items()}
        print(
            f"{name}, {found['timed_steps']} steps of {options.batch_size}: ms, ratio to plain, hit rate, walk's steps"
        )
        for kind, row in found["steps"].items():
            rest = (f"{row[key]:8.2f}" if row[key] is not None else " " * 8 for key in ("hit_rate", "steps_of_a_walk"))
            print(f"  {kind:20}{row['milliseconds']:8.1f}{row['ratio']:8.2f}" + "".join(rest), flush=True)
    results["provenance"] = provenance.record()
    print(write_atomically(options.out / "training_step.json", (json.dumps(results, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
