"""The networks and images of an experiment that does more with them than a benchmark does."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import torch
from rich.console import Console
from torch import Tensor

from robustsigma import RandomAttribution
from robustsigma.benchmark.run import Run
from robustsigma.data.loading import take, take_masks
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import Cost
from shared.options import settings


class Scene:
    """Images that every network gets right, and the networks.

    Args:
        options: of `shared.options.parser`.
        script: that asks, which has a folder of its own.
        references: images that are not judged.
    """

    def __init__(self, options: argparse.Namespace, script: str, references: int = 4) -> None:
        asked = settings(options, {"random": RandomAttribution()}, [Cost()])
        asked = dataclasses.replace(asked, references=references)
        self.run = Run(asked, options.work / (options.name or script), Console(quiet=True))
        self.indices = self.run.judged.indices
        self.images: Tensor = take(self.run.dataset, self.indices)[0]
        self.masks: Tensor | None = take_masks(self.run.dataset, self.indices)
        self.seeds = noise.image_seeds(options.seed, "experiment", "method", 0, torch.tensor(self.indices))

    @property
    def references(self) -> Tensor:
        """Images (R, C, H, W) that are not judged."""
        return self.run._references()

    def networks(self) -> Iterator[tuple[str, Classifier, Tensor]]:
        """Yield each network's name, the network on the CPU, and the class that it says of each image (n,)."""
        for name, classifier in self.run.models.items():
            yield name, classifier.cpu(), self.run.judged.targets[name]

    def names(self, targets: Tensor) -> list[str]:
        """Return the names of classes."""
        return [self.run.source.classes[int(target)] for target in targets]
