"""The options that all experiments share: networks and images.

Without options, an experiment uses a small network, which is trained on the built-in baggage scans once for all
experiments, and test scans that it classifies correctly. These options give other networks and images:

    --model torchvision:resnet50 [--weights FILE] --root FOLDER   # images/ and labels.csv, or a folder per class
    --config FILE.yaml                                            # or several networks, as in `robustsigma benchmark`
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from robustsigma.benchmarking import Benchmark
from robustsigma.cli.benchmark import PRESETS as BENCHMARK_PRESETS
from robustsigma.cli.evaluate import PRESETS as EVALUATION_PRESETS
from robustsigma.data import Baggage, ImageFolder, ImageTable
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.attributors import Attributor
from robustsigma.engine.attributors.baselines import BaselineName
from robustsigma.engine.metrics import AttributionMetric
from robustsigma.evaluation import Evaluation, Training
from robustsigma.evaluation.plan import BASE
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture, Pretrained
from robustsigma.models.pretrained import is_saved
from shared.output import output_options


def parser(about: str | None, *, images: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every experiment.

    Args:
        about: docstring of the script.
        images: default number of evaluated images.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", help="saved .safetensors file, torchvision:NAME, timm:NAME or dotted path of a class")
    made.add_argument("--weights", help="file of weights; the published weights by default")
    made.add_argument("--classes", type=int, help="number of logits, if the network's constructor needs it")
    made.add_argument(
        "--mean", type=float, nargs="+", help="mean of the normalization per channel, if none is published"
    )
    made.add_argument(
        "--std", type=float, nargs="+", help="standard deviation of the normalization per channel, if none is published"
    )
    made.add_argument("--padding", choices=["same"], help="padding of convolutions; `same` for weights from TensorFlow")
    made.add_argument("--size", type=int, help="image size in pixels, if the network does not define it")
    made.add_argument("--root", help="folder of images, with a labels.csv or a subfolder per class")
    made.add_argument("--folder", default="images", help="folder below the root with the files of labels.csv")
    made.add_argument("--file-column", default="file", help="column of labels.csv with the files")
    made.add_argument("--label-column", default="label", help="column of labels.csv with the classes")
    made.add_argument(
        "--config", action="append", default=[], help="YAML file of `robustsigma benchmark` with networks and images"
    )
    made.add_argument(
        "--images", type=int, default=images, help="number of evaluated images that all networks classify correctly"
    )
    made.add_argument("--batch-size", type=int, default=10, help="number of images in a batch")
    made.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    output_options(made)
    return made


def uses_builtin_data(options: argparse.Namespace) -> bool:
    """Return whether the built-in scans are used."""
    return options.root is None and not options.config


def baseline(options: argparse.Namespace) -> BaselineName:
    """Return the baseline of straight paths: white is an empty scan, black the papers' choice for photographs."""
    return "white" if uses_builtin_data(options) else "black"


def scans(fast: bool) -> Baggage:
    """Return the built-in dataset."""
    return Baggage(size=16, train=150, val=10, test=60) if fast else Baggage()


def trained(options: argparse.Namespace) -> tuple[str, str]:
    """Return the name and file of the network of the scans, which is trained once for all experiments."""
    plan: Evaluation = EVALUATION_PRESETS.load("baggage")
    plan = dataclasses.replace(plan, dataset=scans(options.fast), seeds=(options.seed,))
    if options.fast:
        small = Architecture(arguments={"width": 8})
        plan = dataclasses.replace(plan, architecture=small, training=Training(epochs=4, batch_size=16, lr=0.01))
    run = RobustnessRun(plan, options.work / "network", Console(quiet=True))
    run.train(options.seed, run.regimes[0])
    return "small CNN", str(run.store.model(options.seed, BASE))


def source(options: argparse.Namespace) -> DatasetSpec:
    """Return the images of the options."""
    if options.root is None:
        return scans(options.fast)
    if not (Path(options.root) / "labels.csv").is_file():
        return ImageFolder(options.root, test_fraction=1, size=options.size)
    columns = {"file_column": options.file_column, "label_column": options.label_column}
    return ImageTable(options.root, images=options.folder, **columns)


def models(options: argparse.Namespace) -> dict[str, str | Pretrained]:
    """Return the networks of the options, or the network of the scans."""
    if options.model is None:
        name, path = trained(options)
        return {name: path}
    if is_saved(options.model):
        return {Path(options.model).stem: options.model}
    geometry = None if options.size is None else ResizeCrop(options.size)
    given = {key: getattr(options, key) for key in ("weights", "classes", "mean", "std", "padding")}
    name = options.model.split(":")[-1].split(".")[-1].replace("_", " ")
    return {name: Pretrained(options.model, geometry=geometry, **given)}


def settings(
    options: argparse.Namespace, methods: Mapping[str, Attributor], metrics: Sequence[AttributionMetric]
) -> Benchmark:
    """Return the benchmark of methods and metrics on the networks and images of the options."""
    configs = [part for path in options.config for part in ("--config", path)]
    given: Benchmark = BENCHMARK_PRESETS.load("baggage", configs)
    if not options.config:
        given = dataclasses.replace(given, dataset=source(options), models=models(options))
    return dataclasses.replace(
        given,
        methods=dict(methods),
        metrics=tuple(metrics),
        images=options.images,
        batch_size=options.batch_size,
        seed=options.seed,
        checked=0,
    )
