"""Compare this package's AutoAttack with the reference code, image by image: accuracy, passes and time.

    python experiments/autoattack.py                     # small networks, trained on MNIST5k: plainly, on FGSM, on PGD
    python experiments/autoattack.py --weights resnet20.pt --root TEST_IMAGES.zip      # and a ResNet-20 for CIFAR-10

The reference is fra31/auto-attack in the form of the package pyautoattack (`pip install 'robustsigma[test]'`). Both run
"standard" on the same test images and network in one process, one after the other. Passes are counted at the network;
seconds are CPU time. `--weights` is a file of github.com/akamaster/pytorch_resnet_cifar10, and `--root` a zip file or a
folder with one folder of images for each of CIFAR-10's classes. Finished cells are kept in `--work`, so several calls
with `--only` can share the work. Writes results/autoattack.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from shared.output import command, output_options, table, write
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image

from robustsigma import FGSM, PGD, AutoAttack, Classifier, Identity, Perturbation
from robustsigma.data import MNIST5k
from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine.metrics import mean_interval
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.models import CifarResNet
from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance

TRAININGS: dict[str, Perturbation] = {
    "plain": Identity(),
    "FGSM": FGSM(0.2, random_start=True),
    "PGD": PGD(0.2, steps=7),
}
RADII = {"plain": (0.1, 0.15, 0.2), "FGSM": (0.2, 0.25, 0.3), "PGD": (0.25, 0.3, 0.35)}
CIFAR_RADII = (1 / 255, 1.25 / 255, 1.5 / 255)
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Case = tuple[str, Classifier, Tensor, Tensor, tuple[float, ...]]  # name, network, images, labels, radii


class Counter(nn.Module):
    """A network that counts its images and their gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output."""
        self.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._count)
        return self.net(images)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def small_network() -> nn.Module:
    """Return a CNN whose passes are cheap."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
    )


def trained(perturbation: Perturbation, epochs: int) -> Classifier:
    """Return a small network that was trained on perturbed MNIST5k."""
    torch.manual_seed(0)
    classifier, dataset = Classifier(small_network()), MNIST5k().split("train")
    images, labels = load_batch(dataset, list(range(len(dataset))))
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
    for epoch in range(epochs):
        for step, rows in enumerate(torch.randperm(len(images)).split(100)):
            x = perturbation(classifier, images[rows], labels[rows], seed=1000 * epoch + step)
            optimizer.zero_grad()
            F.cross_entropy(classifier(x), labels[rows]).backward()
            optimizer.step()
    return classifier.eval()


def cifar10(root: Path, count: int) -> tuple[Tensor, Tensor]:
    """Return images drawn from a zip file or a folder with one folder for each class."""
    read: Callable[[str], bytes]
    if root.is_file():
        archive = zipfile.ZipFile(root)
        names, read = archive.namelist(), archive.read
    else:
        names, read = [str(path) for path in root.rglob("*")], lambda name: Path(name).read_bytes()
    names = sorted(name for name in names if name.lower().endswith((".png", ".jpg", ".jpeg")))
    classes = sorted({Path(name).parent.name for name in names})
    chosen = [names[i] for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:count]]
    bits = [torch.frombuffer(bytearray(read(name)), dtype=torch.uint8) for name in chosen]
    images = torch.stack([decode_image(each, ImageReadMode.RGB) for each in bits]).float() / 255
    return images, torch.tensor([classes.index(Path(name).parent.name) for name in chosen])


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield networks with their images and radii."""
    dataset = MNIST5k().split("test")
    images, labels = load_batch(dataset, subsample(len(dataset), options.images, 0))  # its images are sorted by class
    for name, perturbation in TRAININGS.items():
        if options.only and name not in options.only:
            continue
        yield f"small CNN, {name}", trained(perturbation, options.epochs), images, labels, RADII[name]
    if options.weights and (not options.only or "ResNet-20" in options.only):
        net = CifarResNet()
        net.load_state_dict(torch.load(options.weights, weights_only=True))
        net = Classifier(net, mean=CIFAR_MEAN, std=CIFAR_STD).eval()
        yield "ResNet-20", net, *cifar10(Path(options.root), options.images), CIFAR_RADII


def measured(run: Callable[[], tuple[Tensor, dict[str, Any]]], counter: Counter) -> tuple[Tensor, dict[str, Any]]:
    """Return which images withstand an attack, and its accuracy, passes and seconds."""
    counter.forwards = counter.backwards = 0
    start = time.process_time()
    robust, more = run()
    seconds = time.process_time() - start
    passes = {"forwards": counter.forwards, "backwards": counter.backwards}
    accuracy = as_dict(mean_interval(robust.double().numpy()))
    return robust, {"accuracy": accuracy, **passes, "seconds": seconds, **more}


def compare(classifier: Classifier, images: Tensor, labels: Tensor, eps: float, standard: bool) -> dict[str, Any]:
    """Return what both attacks find within a radius."""
    import pyautoattack

    counter = Counter(classifier.net)
    counted = Classifier(counter, mean=classifier.mean.flatten().tolist(), std=classifier.std.flatten().tolist())
    attack = AutoAttack(eps) if standard else AutoAttack(eps, steps=5, queries=20)

    def own() -> tuple[Tensor, dict[str, Any]]:
        info = attack(counted, images, labels, seed=0, return_info=True)
        flags = attack.flags(info.found_by, info.zero_gradient, classes=10)
        return ~info.success, {
            "after": attack.accuracies(info.found_by),
            "flags": [flag.code for flag in flags],
            "largest_distance": float(info.distance.max()),
        }

    def reference() -> tuple[Tensor, dict[str, Any]]:
        for parameter in counted.parameters():
            parameter.requires_grad_(False)
        peer = pyautoattack.AutoAttack(counted, eps=eps, seed=0)
        if not standard:
            peer.square.n_queries = 20
            for part in (peer.apgd, peer.apgd_targeted, peer.fab):
                part.n_iter = part.n_iter_orig = 5
        _, predicted = peer.run_standard_evaluation(images.clone(), labels.clone(), batch_size=len(images))
        return predicted == labels, {}

    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    ours, found = measured(own, counter)
    theirs, peer = measured(reference, counter)
    return {
        "eps": eps,
        "own": found,
        "reference": peer,
        "points_above": 100 * float(ours.double().mean() - theirs.double().mean()),
        "same_images": float((ours == theirs).double().mean()),
        "seconds_of_reference": found["seconds"] / peer["seconds"],
    }


def shown(found: dict[str, Any]) -> str:
    """Return the results as a table: accuracies in %, thousands of passes (forward and backward), CPU seconds."""
    lines = []
    for name, rows in found["networks"].items():
        for row in rows:
            both = [row[who] for who in ("own", "reference")]
            accuracies = [f"{100 * of['accuracy']['mean']:.1f}" for of in both]
            passes = [f"{(of['forwards'] + of['backwards']) / 1000:,.0f}" for of in both]
            seconds = [f"{of['seconds']:.0f}" for of in both]
            lines.append([name, f"{row['eps']:.4f}", *accuracies, *passes, *seconds])
    heads = [f"{what}, {who}" for what in ("%", "passes", "s") for who in ("ours", "reference")]
    return table(["network", "eps", *heads], lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options_of = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_of.add_argument("--weights", help="file of weights of a ResNet-20 for CIFAR-10")
    options_of.add_argument("--root", help="zip file or folder of its test images, needed with --weights")
    options_of.add_argument("--images", type=int, default=500, help="number of images")
    options_of.add_argument("--epochs", type=int, default=10, help="epochs of training on MNIST5k")
    options_of.add_argument("--only", nargs="+", help="plain, FGSM, PGD or ResNet-20: networks to attack")
    options_of.add_argument("--radius", type=int, nargs="+", help="places of radii to attack within, from 0")
    output_options(options_of)
    options = options_of.parse_args(arguments)
    if options.fast:
        options.images, options.epochs = 20, 1
    provenance = Provenance(command("autoattack", arguments))
    found: dict[str, Any] = {"images": options.images, "threads": torch.get_num_threads(), "networks": {}}
    for name, classifier, images, labels, radii in cases(options):
        rows = found["networks"].setdefault(name, [])
        for place, eps in enumerate(radii):
            if options.radius and place not in options.radius:
                continue
            cell = options.work / "autoattack" / f"{name}_{eps:.5f}_{len(images)}_{options.epochs}.json"
            if not cell.is_file():
                row = compare(classifier, images, labels, eps, not options.fast)
                cell.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(cell, json.dumps(row).encode())
            rows.append(json.loads(cell.read_text(encoding="utf-8")))
            print(f"{name}, {eps:.4f}: {rows[-1]}", flush=True)
    path = write(options, "autoattack", found, provenance)
    print(shown(found))
    print(path)


if __name__ == "__main__":
    main()
