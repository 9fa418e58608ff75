"""Errors under corruptions of five severities, and the mean corruption error (Hendrycks and Dietterich, 2019).

    python experiments/corruption_error.py                                   # corruptions of scans, as in CIFAR-10-C
    python experiments/corruption_error.py --model robustsigma.models.CifarResNet --weights resnet20.pt --size 32 \
        --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --stored CIFAR-10-C --name corruption_error_cifar10
    python experiments/corruption_error.py … --reference results/corruption_error_base.json      # with mCE

`--stored` is a folder of NAME.npy and labels.npy (CIFAR-10-C, CIFAR-100-C), or of NAME/SEVERITY/CLASS/ (ImageNet-C);
its images are used as they are. Without it, `Corruption` corrupts each test image; its families resemble the original
ones but are not copies. The corruption error of a family is the error divided by that of a reference network: give
`--reference` another result of this script on the same corruptions (the paper uses AlexNet on ImageNet-C). Error rates
are over the same `--images` test images, drawn by the seed. Writes results/corruption_error.json after each family.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from shared.options import models, parser, source
from shared.output import command, number, table, write
from torch import Tensor

from robustsigma import Classifier, Corruption
from robustsigma.data import CorruptionArrays, ImageFolder
from robustsigma.data.dataset_spec import adapt_and_check
from robustsigma.data.folder_scan import subfolders
from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine import noise
from robustsigma.engine.device import best_device
from robustsigma.engine.metrics import mean_interval
from robustsigma.engine.metrics.corruption_error import corruption_errors, mean_corruption_error
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.engine.perturbations.corruption import CORRUPTIONS, SEVERITIES
from robustsigma.models import ModelCard, Pretrained, load_model
from robustsigma.runs.provenance import Provenance

CLEAN = "clean"

Corrupted = tuple[str, int, Tensor, Tensor]  # family, severity, images, labels


def network(options: argparse.Namespace) -> tuple[str, Classifier, ModelCard]:
    """Return the network that the options name, or the one that is trained."""
    ((name, of),) = models(options).items()
    classifier, card = of.load() if isinstance(of, Pretrained) else load_model(of)
    return name, classifier.to(best_device()).eval(), card


def made(options: argparse.Namespace, classifier: Classifier, card: ModelCard) -> Iterator[Corrupted]:
    """Yield test images, untouched and corrupted by each family at each severity."""
    dataset = adapt_and_check(source(options), card.classes, card.shape, card.geometry, "model").split("test")
    indices = subsample(len(dataset), options.images, options.seed)  # type: ignore[arg-type]
    x, y = load_batch(dataset, indices)
    yield CLEAN, 0, x, y
    x, y = x.to(best_device()), y.to(best_device())
    for family in options.only or CORRUPTIONS:
        seeds = noise.image_seeds(options.seed, "experiment", family, 0, torch.tensor(indices))
        for severity in SEVERITIES:
            yield family, severity, Corruption(family, severity)(classifier, x, y, seed=seeds), y


def stored(options: argparse.Namespace, _: Classifier, card: ModelCard) -> Iterator[Corrupted]:
    """Yield stored images of each family at each severity."""
    root = Path(options.stored)
    arrays = sorted(path.stem for path in root.glob("[!.]*.npy") if path.stem != "labels")
    families = arrays or subfolders(root)
    for family in [name for name in families if options.only is None or name in options.only]:
        for severity in SEVERITIES:
            if arrays:
                dataset = CorruptionArrays(str(root), family, severity).split("test")
            else:
                size = None if card.geometry else card.shape[1]
                folder = ImageFolder(str(root / family / str(severity)), test_fraction=1, size=size)
                dataset = adapt_and_check(folder, card.classes, card.shape, card.geometry, "model").split("test")
            yield family, severity, *load_batch(dataset, subsample(len(dataset), options.images, options.seed))


def errors(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the share of wrong answers with its interval."""
    device = best_device()
    with classifier.frozen():
        wrong = (classifier.logits(images.to(device)).argmax(1) != labels.to(device)).cpu()
    return as_dict(mean_interval(wrong.double().numpy()))


def rates(found: dict[str, Any]) -> dict[str, list[float]]:
    """Return error rates by family, one for each severity."""
    return {family: [each["mean"] for each in row] for family, row in found["errors"].items()}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options_of = parser(__doc__, images=500)
    options_of.add_argument("--stored", help="folder of stored corruptions")
    options_of.add_argument("--reference", type=Path, help="result of this script for another network")
    options_of.add_argument("--only", nargs="+", help="families of corruptions to measure")
    options = options_of.parse_args(arguments)
    provenance = Provenance(command("corruption_error", arguments))
    name, classifier, card = network(options)
    of = "stored" if options.stored else "corruptions like CIFAR-10-C's"
    found: dict[str, Any] = {"network": name, "corruptions": of, "images": options.images, "clean": None, "errors": {}}
    path = None
    for family, severity, images, labels in (stored if options.stored else made)(options, classifier, card):
        error = errors(classifier, images, labels)
        if family == CLEAN:
            found["clean"] = error
            print(f"clean: {number(error['mean'])}", flush=True)
            continue
        found["errors"].setdefault(family, []).append(error)
        if severity == SEVERITIES[-1]:
            shown = " ".join(number(each["mean"]) for each in found["errors"][family])
            print(f"{family}: {shown}", flush=True)
            path = write(options, "corruption_error", found, provenance)
    if path is None:
        raise SystemExit(f"--stored: expected corruptions, got none in {options.stored}")
    _summarize(found, options.reference)
    print(write(options, "corruption_error", found, provenance))


def _summarize(found: dict[str, Any], reference: Path | None) -> None:
    """Add the mean error, and with a reference the corruption errors; print the table."""
    own = rates(found)
    found["mean_error"] = sum(map(sum, own.values())) / sum(map(len, own.values()))
    head, relative = ["corruption", *map(str, SEVERITIES), "mean"], {}
    if reference is not None:
        other = json.loads(reference.read_text(encoding="utf-8"))
        relative = corruption_errors(own, rates(other))
        found["reference"], found["corruption_errors"] = other["network"], relative
        found["mean_corruption_error"] = mean_corruption_error(own, rates(other))
        head.append(f"of {other['network']}'s")
    rows = [
        [family, *map(number, row), number(sum(row) / len(row)), *([number(relative[family])] if relative else [])]
        for family, row in own.items()
    ]
    print(table(head, rows))
    print(f"mean error {number(found['mean_error'])}")
    if relative:
        print(f"mean corruption error {number(found['mean_corruption_error'])} of {found['reference']}'s")


if __name__ == "__main__":
    main()
