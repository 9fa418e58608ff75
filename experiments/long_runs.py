"""Does anything grow in long runs? python experiments/long_runs.py.

Counted are resident memory (and that of the GPU where there is one), live tensors, hooks on the network, open files,
threads and child processes: over 200 calls of each attributor, over as many networks that are explained once and let
go, over 2,000 training steps with augmentation (Gaussian, FGSM, SIGMA samples with and without a bank) and loading
processes, and over 20 trainings one after the other. The first calls, which fill caches, are left out.

Writes results/long_runs.json: each count in the beginning and in the end, and how it grew.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

import robustsigma.engine.attributors as public
from robustsigma import FGSM, Classifier, GaussianNoise, Mixture, Share, Sigma, SigmaSample
from robustsigma.data import Baggage, RobustDataModule
from robustsigma.device import best_device
from robustsigma.engine.perturbations.sigma_sample import Bank
from robustsigma.evaluation.lightning import quiet, quiet_trainer
from robustsigma.files import write_atomically
from robustsigma.models import network
from robustsigma.provenance import Provenance
from robustsigma.training import AugmentationStatistics, LitClassifier

CHEAP: dict[str, dict[str, Any]] = {
    "AGI": {"steps": 3, "classes": 2},
    "CrediblePath": {"steps": 3, "max_search": 3},
    "ExpectedGradients": {"draws": 4},
    "GuidedIntegratedGradients": {"steps": 6},
    "IDG": {"steps": 8},
    "IG2": {"steps": 6},
    "IntegratedGradients": {"steps": 6},
    "LeftIntegratedGradients": {"steps": 6},
    "Sigma": {"max_steps": 6, "paths": 2, "objective": "logit"},
}
WALK = Sigma(alpha=0.03, beta=0.1, objective="logit", paths=1, max_steps=5)


def counts(net: nn.Module | None = None) -> dict[str, int]:
    """Return what there is now."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated objects that are looked at
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    found = {
        "resident_kb": resident(),
        "tensors": len(tensors),
        "tensor_bytes": sum(each.nbytes for each in tensors if each.layout == torch.strided),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208  a listing holds one open itself, always the same
        "threads": threading.active_count(),
        "children": len(multiprocessing.active_children()),
        "hooks": 0 if net is None else sum(_hooks(module) for module in net.modules()),
    }
    if torch.cuda.is_available():
        found["gpu_bytes"] = torch.cuda.memory_allocated()
    return found


def resident() -> int:
    """Return this process's memory in kB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _hooks(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for kind in kinds)


def grown(call: Callable[[int], None], times: int, warm: int, net: nn.Module | None = None) -> dict[str, Any]:
    """Call something so often and return the counts before and after, and the most in between.

    Args:
        call: takes the number of the call.
        times: how often it is called.
        warm: how often before that.
        net: whose hooks are counted.
    """
    for number in range(warm):
        call(number)
    before, most = counts(net), 0
    for number in range(times):
        call(warm + number)
        most = max(most, resident())
    after = counts(net)
    return {
        "times": times,
        "before": before,
        "after": after,
        "most_resident_kb": max(most, after["resident_kb"]),
        "grown": {name: after[name] - before[name] for name in before},
    }


def classifier(seed: int, *, transformer: bool = False) -> Classifier:
    """Return a small network, on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if transformer:
            net: nn.Module = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)
        else:
            net = network("small_cnn", 3, 5, {"width": 4})
    return Classifier(net, mean=[0.5], std=[0.25]).to(best_device())


def methods() -> Iterator[tuple[str, Callable[[Classifier, torch.Tensor, torch.Tensor, int], None], bool]]:
    """Yield each attributor's name, a call of it, and whether it takes transformers alone."""
    references = Baggage(size=16, train=10, val=5, test=5).split("train").batch(range(3))[0].to(best_device())  # type: ignore[attr-defined]
    for name in sorted(set(public.__all__) - {"Attribution", "Attributor"}):
        extra = {"references": references} if name in ("ExpectedGradients", "IG2") else {}
        method = getattr(public, name)(**CHEAP.get(name, {}), **extra)

        def call(clf: Classifier, x: torch.Tensor, y: torch.Tensor, seed: int, method: Any = method) -> None:
            method(clf, x, y, seed=seed).heatmap()

        yield name, call, name == "AttentionRollout"


def of_attributors(times: int, warm: int) -> dict[str, Any]:
    """Return what grows over calls of each attributor."""
    x, y = (part.to(best_device()) for part in Baggage(size=16, train=5, val=5, test=5).split("test").batch(range(4)))  # type: ignore[attr-defined]
    found = {}
    for name, call, transformer in methods():
        clf = classifier(0, transformer=transformer)
        found[name] = grown(lambda seed, call=call, clf=clf: call(clf, x, y, seed), times, warm, clf)  # type: ignore[misc]
    return found


def of_networks(times: int, warm: int) -> dict[str, Any]:
    """Return what grows over networks that are explained once."""
    x, y = (part.to(best_device()) for part in Baggage(size=16, train=5, val=5, test=5).split("test").batch(range(4)))  # type: ignore[attr-defined]
    calls = {name: call for name, call, transformer in methods() if not transformer}
    return grown(lambda seed: [calls[n](classifier(seed), x, y, seed) for n in ("Sigma", "IDG")] and None, times, warm)


class Watch(pl.Callback):
    """Counts after so many steps."""

    def __init__(self, every: int, found: list[dict[str, int]]) -> None:
        self.every, self.found = every, found

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count."""
        if trainer.global_step % self.every == 0:
            self.found.append({"step": trainer.global_step, **counts(pl_module)})


def train(steps: int, folder: Path, *callbacks: pl.Callback, workers: int = 1) -> None:
    """Train a network with augmentation."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = LitClassifier(network("small_cnn", 3, 5, {"width": 4}), mean=[0.5], std=[0.25])
        parts = [Share(GaussianNoise(0.1), 0.2), Share(FGSM(0.03, random_start=True), 0.2)]
        parts += [Share(SigmaSample(WALK), 0.1), Share(SigmaSample(WALK, bank=Bank(max_age=3)), 0.2)]
        source = Baggage(size=16, train=80, val=5, test=5)
        data = RobustDataModule(source, train_perturbation=Mixture(parts), batch_size=8, num_workers=workers)
        with quiet():
            trainer = quiet_trainer(
                [AugmentationStatistics(), *callbacks], max_steps=steps, limit_val_batches=0, default_root_dir=folder
            )
            trainer.fit(model, data)


def of_training(steps: int, folder: Path) -> dict[str, Any]:
    """Return what grows over the steps of a training, after a quarter of them, when caches and bank are full."""
    course: list[dict[str, int]] = []
    before = counts()
    train(steps, folder, Watch(max(1, steps // 20), course))  # Lightning lets a callback hold the network
    late = [row for row in course if row["step"] >= steps // 4]
    names = [name for name in late[0] if name != "step"]
    return {
        "times": steps,
        "before": before,
        "course": course,
        "grown": {name: late[-1][name] - late[0][name] for name in names},
        "after": counts(),
    }


def of_trainings(times: int, warm: int, folder: Path) -> dict[str, Any]:
    """Return what grows over trainings."""
    return grown(lambda number: train(12, folder), times, warm)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--warm", type=int, default=20, help="calls before, which are not counted")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--trainings", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    provenance = Provenance("python experiments/long_runs.py")
    gc.collect()
    gc.freeze()  # what the imports made is not looked through at each count
    found: dict[str, Any] = {"attributors": of_attributors(options.calls, options.warm)}
    found["networks"] = of_networks(options.calls, options.warm)
    with tempfile.TemporaryDirectory() as name:
        found["training"] = of_training(options.steps, Path(name))
        found["trainings"] = of_trainings(options.trainings, 3, Path(name))
    rows = {**found["attributors"], **{name: found[name] for name in ("networks", "training", "trainings")}}
    for name, row in rows.items():
        told = ", ".join(f"{what} {more:+,}" for what, more in row["grown"].items() if more)
        print(f"{name:28}{row['times']:6,} times: {told or 'nothing grew'}")
    found["provenance"] = provenance.record()
    gc.unfreeze()
    print(write_atomically(options.out / "long_runs.json", (json.dumps(found, indent=1) + "\n").encode()))
    return found


if __name__ == "__main__":
    main()
