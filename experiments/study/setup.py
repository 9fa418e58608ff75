"""What the study compares: a dataset with its network and conditions, and trainings, from a YAML file beside this."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from robustsigma import GaussianNoise, Mixture, Perturbation
from robustsigma.data import ArrayDataset, Datasets, DatasetSpec
from robustsigma.data.loading import load_batch, subsample
from robustsigma.evaluation import Evaluation
from robustsigma.evaluation.plan import Regime
from robustsigma.lightning.sample_labels import SampleLabels

SAMPLES, TIME, VARIATIONS = "samples", "time", "variations"
CLEAN, GAUSSIAN, REFERENCE, TRANSFER = "clean", "gaussian", "sigma", "sigma_transfer"
MIXTURE, WITHOUT_SIGMA = "mixture", "mixture_without_sigma"
WITH_SIGMA = (TRANSFER, REFERENCE, "sigma_cache", MIXTURE)


@dataclass(frozen=True)
class Training:
    """A training that starts from the base model.

    Args:
        perturbation: perturbation of the augmented images.
        epochs: passes over the training images, and over those that are added.
        share: share of each batch that is augmented on the fly.
        samples: number of images that are made once against the base model and added, as in the paper; None makes them
            on the fly.
        labels: labels of SIGMA samples.
    """

    perturbation: Perturbation
    epochs: int = 4
    share: float = 0.25
    samples: int | None = None
    labels: SampleLabels = field(default_factory=SampleLabels)

    def steps(self, images: int, batch_size: int) -> int:
        """Return the optimizer steps of an epoch."""
        return math.ceil((images + (self.samples or 0)) / batch_size)

    def within(self, settings: Evaluation) -> Evaluation:
        """Return the settings of an evaluation in which this training is made."""
        own = {"epochs": self.epochs, "share": self.share, "samples": self.samples or 1}
        return replace(settings, retraining=replace(settings.retraining, **own))

    def __str__(self) -> str:
        how = "made on the fly" if self.samples is None else "made once against the base model and added"
        labels = "" if self.labels == SampleLabels() else f", labels {dataclasses.asdict(self.labels)}"
        return f"{self.epochs} epochs, {self.share:.0%} {how}: {self.perturbation!r}{labels}"


@dataclass(frozen=True)
class Plan(Regime):
    """A row of a table: a training with its name and the id of its files.

    Attributes:
        training: the training.
    """

    training: Training


@dataclass(frozen=True)
class Setup:
    """A dataset of the study.

    Args:
        title: name of the dataset.
        note: reason of a setting, in words.
        settings: network, base model, conditions and sweep of the Gaussian noise.
        regimes: trainings of the first two tables.
        variations: trainings of the third table.
        subset: largest number of images of each split, which are drawn at random and kept in memory; None uses all.
    """

    title: str
    note: str
    settings: Evaluation
    regimes: Mapping[str, Training]
    variations: Mapping[str, Training]
    subset: Mapping[str, int] | None = None


def load(name: str, root: str | None = None) -> Setup:
    """Return a setup from its YAML file.

    Args:
        name: name of the file.
        root: folder of the images; None keeps that of the file.
    """
    given = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8"))
    if root is not None:
        given["settings"]["dataset"]["init_args"]["root"] = root
    changes = given["variations"]
    given["variations"] = {key: _changed(given["regimes"][REFERENCE], **change) for key, change in changes.items()}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Setup)
    return Setup(**vars(parser.instantiate(parser.parse_object(given))))


def in_memory(dataset: DatasetSpec, counts: Mapping[str, int]) -> Datasets:
    """Return random images of each split of a dataset, decoded once, without masks."""
    splits = {}
    for name, count in counts.items():
        split = dataset.split(name)  # type: ignore[arg-type]
        images, labels = load_batch(split, subsample(len(split), count, 0))  # type: ignore[arg-type]
        splits[name] = ArrayDataset((images * 255).round().to(torch.uint8), labels)
    return Datasets(**splits, classes=dataset.classes)


def _changed(training: dict[str, Any], walk: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a training with changes, also of SIGMA's walk."""
    found = {**copy.deepcopy(training), **changes}
    found["perturbation"]["init_args"]["sigma"].update(walk or {})
    return found


def plans(table: str, trainings: Mapping[str, Training], std: float) -> list[Plan]:
    """Return the rows of a table; `std` becomes that of every Gaussian noise."""
    rows = []
    for name, training in trainings.items():
        training = replace(training, perturbation=_with_std(training.perturbation, std))
        protocol = "on_the_fly" if training.samples is None else "retrain"
        key = name.replace(", ", "_").replace(" ", "_")
        rows.append(Plan(f"{table}/{key}", name, protocol, training.perturbation, training))
    return rows


def _with_std(perturbation: Perturbation, std: float) -> Perturbation:
    if isinstance(perturbation, GaussianNoise):
        return GaussianNoise(std)
    if isinstance(perturbation, Mixture):
        parts = [replace(part, perturbation=_with_std(part.perturbation, std)) for part in perturbation.parts]
        return Mixture(parts)
    return perturbation


def by_time(rows: list[Plan], epochs: Mapping[str, int]) -> list[Plan]:
    """Return the rows with other numbers of epochs, by name; a row that keeps its number is not trained again."""
    return [
        row
        if epochs[row.name] == row.training.epochs
        else replace(row, id=f"{TIME}/{row.name}", training=replace(row.training, epochs=epochs[row.name]))
        for row in rows
    ]
