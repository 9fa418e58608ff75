"""Networks and images of experiments that need more than a benchmark."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import torch
from rich.console import Console
from torch import Tensor

from robustsigma import RandomAttribution
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.data.loading import load_batch, load_masks
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import Cost
from shared.options import settings


class Scene:
    """Networks, and images that all of them classify correctly.

    Args:
        options: options of `shared.options.parser`.
        script: name of the script, and of its folder.
        references: number of further images that are not evaluated.
    """

    def __init__(self, options: argparse.Namespace, script: str, references: int = 4) -> None:
        asked = settings(options, {"random": RandomAttribution()}, [Cost()])
        asked = dataclasses.replace(asked, references=references)
        self.run = BenchmarkRun(asked, options.work / (options.name or script), Console(quiet=True))
        self.indices = self.run.evaluated.indices
        self.images: Tensor = load_batch(self.run.split, self.indices)[0]
        self.masks: Tensor | None = load_masks(self.run.split, self.indices)
        self.seeds = noise.image_seeds(options.seed, "experiment", "method", 0, torch.tensor(self.indices))

    @property
    def references(self) -> Tensor:
        """Images (R, C, H, W) that are not evaluated."""
        return self.run.references()

    def networks(self) -> Iterator[tuple[str, Classifier, Tensor]]:
        """Yield the name of each network, the network on the CPU, and its predicted classes (n,)."""
        for name, classifier in self.run.models.items():
            yield name, classifier.cpu(), self.run.evaluated.targets[name]

    def names(self, targets: Tensor) -> list[str]:
        """Return the names of classes."""
        return [self.run.dataset.classes[int(target)] for target in targets]
