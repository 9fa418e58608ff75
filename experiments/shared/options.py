"""The options that the experiments share: which networks and images they take.

Without options an experiment trains a small network on the embedded baggage scans, once for all experiments, and judges
on test scans that it classifies right. Real networks and images come by

    --model torchvision:resnet50 [--weights FILE] --root FOLDER   # images/ and labels.csv, or a folder for each class
    --config FILE.yaml                                            # or several networks, as `robustsigma benchmark` has
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from robustsigma.benchmark import Benchmark
from robustsigma.benchmark.parsing import PRESETS
from robustsigma.data import Baggage, ImageFolder, ImageTable
from robustsigma.data.source import Source
from robustsigma.engine.attributors import Attributor
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.metrics import AttributionMetric
from robustsigma.evaluation import Evaluation, Training, preset
from robustsigma.evaluation.run import BASE, Run
from robustsigma.geometry import Geometry
from robustsigma.models import Architecture, Pretrained
from robustsigma.models.named import is_saved


def parser(about: str | None, *, images: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every experiment has.

    Args:
        about: the script's docstring.
        images: how many are judged if nothing is said.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", help="a .safetensors of ours, torchvision:NAME, timm:NAME or a dotted path")
    made.add_argument("--weights", help="file of weights; the published ones if not given")
    made.add_argument("--classes", type=int, help="logits of the network, where its constructor asks for them")
    made.add_argument("--mean", type=float, nargs="+", help="of the network's normalisation, where none is published")
    made.add_argument("--std", type=float, nargs="+", help="the same")
    made.add_argument("--padding", choices=["same"], help="same: for weights that come from TensorFlow")
    made.add_argument("--size", type=int, help="images in pixels, where the network does not say")
    made.add_argument("--root", help="folder of images: with a labels.csv, or a subfolder for each class")
    made.add_argument("--folder", default="images", help="of the files that labels.csv names, below the root")
    made.add_argument("--file-column", default="file", help="of labels.csv")
    made.add_argument("--label-column", default="label", help="of labels.csv")
    made.add_argument("--config", action="append", default=[], help="YAML of `robustsigma benchmark`: networks, images")
    made.add_argument("--images", type=int, default=images, help="judged, of those that every network gets right")
    made.add_argument("--batch-size", type=int, default=10)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--work", type=Path, default=Path("runs/experiments"), help="folder of what is half done")
    made.add_argument("--out", type=Path, default=Path("results"))
    made.add_argument("--name", help="of the file of results; the script's if not given")
    made.add_argument("--fast", action="store_true", help="a small form, to see that it runs")
    return made


def embedded(options: argparse.Namespace) -> bool:
    """Return whether the embedded scans are judged."""
    return options.root is None and not options.config


def baseline(options: argparse.Namespace) -> BaselineName:
    """Return where straight lines start: white is an empty scan, black the papers' choice for photographs."""
    return "white" if embedded(options) else "black"


def scans(fast: bool) -> Baggage:
    """Return the embedded dataset."""
    return Baggage(size=16, train=150, val=10, test=60) if fast else Baggage()


def trained(options: argparse.Namespace) -> tuple[str, str]:
    """Return the name and file of the network that is trained on the scans, once for all experiments."""
    plan: Evaluation = dataclasses.replace(preset("baggage"), source=scans(options.fast), seeds=(options.seed,))
    if options.fast:
        small = Architecture(arguments={"width": 8})
        plan = dataclasses.replace(plan, architecture=small, training=Training(epochs=4, batch_size=16, lr=0.01))
    run = Run(plan, options.work / "network", Console(quiet=True))
    run.train(options.seed, run.regimes[0])
    return "small CNN", str(run.store.model(options.seed, BASE))


def source(options: argparse.Namespace) -> Source:
    """Return the images that the options name."""
    if options.root is None:
        return scans(options.fast)
    if not (Path(options.root) / "labels.csv").is_file():
        return ImageFolder(options.root, test_fraction=1, size=options.size)
    columns = {"file_column": options.file_column, "label_column": options.label_column}
    return ImageTable(options.root, images=options.folder, **columns)


def models(options: argparse.Namespace) -> dict[str, str | Pretrained]:
    """Return the networks that the options name, or the one that is trained."""
    if options.model is None:
        name, path = trained(options)
        return {name: path}
    if is_saved(options.model):
        return {Path(options.model).stem: options.model}
    geometry = None if options.size is None else Geometry(options.size)
    told = {key: getattr(options, key) for key in ("weights", "classes", "mean", "std", "padding")}
    name = options.model.split(":")[-1].split(".")[-1].replace("_", " ")
    return {name: Pretrained(options.model, geometry=geometry, **told)}


def settings(
    options: argparse.Namespace, methods: Mapping[str, Attributor], metrics: Sequence[AttributionMetric]
) -> Benchmark:
    """Return the benchmark of some methods and metrics on the networks and images that the options name."""
    given: Benchmark = PRESETS.load("baggage", [part for path in options.config for part in ("--config", path)])
    if not options.config:
        given = dataclasses.replace(given, source=source(options), models=models(options))
    return dataclasses.replace(
        given,
        methods=dict(methods),
        metrics=tuple(metrics),
        images=options.images,
        batch_size=options.batch_size,
        seed=options.seed,
        checked=0,
    )
