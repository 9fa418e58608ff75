"""Callbacks: what the augmentation did, and the trained weights as safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from robustsigma.data.module import RobustDataModule
from robustsigma.data.source import Batch
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Perturbed
from robustsigma.engine.validation import fail
from robustsigma.models import ModelCard, save_model


@dataclass(frozen=True)
class AugmentationTotals:
    """What was made for training.

    Attributes:
        samples: images that were changed.
        searched: images for which a search was run (SIGMA's walk).
        converged: searches that reached their goal.
        steps: of all searches together.
        seconds: spent in perturbations, on the host's clock, over all processes.
    """

    samples: int = 0
    searched: int = 0
    converged: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: AugmentationTotals) -> AugmentationTotals:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return AugmentationTotals(*(a + b for a, b in pairs))


def counts(made: Perturbed, clean: Tensor) -> Tensor:
    """Return the integers of `AugmentationTotals` for a batch, int64 (4,), without waiting for the device."""
    changed = (made.images != clean).flatten(1).any(1)
    return torch.stack([changed.sum(), made.searched.sum(), (made.searched & made.converged).sum(), made.steps.sum()])


class AugmentationStatistics(pl.Callback):
    """Logs each epoch what the training perturbation did.

    `augment_samples_per_second`, `augment_seconds`, and where a search was run `augment_converged` (the share that
    reached its goal) and `augment_steps` (mean). `totals` holds the sums over all epochs.
    """

    def __init__(self) -> None:
        self.totals = AugmentationTotals()
        self._counts: Tensor | None = None
        self._seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a new epoch's sums."""
        self._counts, self._seconds = None, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add a batch, without waiting for the device."""
        if batch.made is None or batch.clean is None:
            return
        sums = counts(batch.made, batch.clean)
        self._counts = sums if self._counts is None else self._counts + sums
        self._seconds += batch.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch."""
        if self._counts is None:
            return
        sums = torch.cat([self._counts.double(), self._counts.new_tensor([self._seconds], dtype=torch.float64)])
        reduced = trainer.strategy.reduce(sums, reduce_op="sum")
        samples, searched, converged, steps, seconds = torch.as_tensor(reduced).tolist()
        self.totals += AugmentationTotals(int(samples), int(searched), int(converged), int(steps), seconds)
        logged = {"augment_seconds": seconds, "augment_samples_per_second": samples / seconds if seconds else 0.0}
        if searched:
            logged |= {"augment_converged": converged / searched, "augment_steps": steps / searched}
        pl_module.log_dict(logged)


class SafetensorsExport(pl.Callback):
    """Writes the trained weights, with what is needed to use them, when training ends.

    `robustsigma explain` and `robustsigma augment` take the file as their model.

    Args:
        path: of the file; None is `model.safetensors` in the logger's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, in one process."""
        classifier, data = getattr(pl_module, "classifier", None), getattr(trainer, "datamodule", None)
        if not isinstance(classifier, Classifier) or not isinstance(data, RobustDataModule):
            raise fail("callbacks", "SafetensorsExport beside a LitClassifier and a RobustDataModule", "others")
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        folder = trainer.log_dir or trainer.default_root_dir
        save_model(self.path or Path(folder) / "model.safetensors", classifier.net, card_of(classifier, data))


def card_of(classifier: Classifier, data: RobustDataModule) -> ModelCard:
    """Return the card of a classifier that was trained on a data module."""
    return ModelCard(
        getattr(classifier.net, "architecture", None),
        data.source.classes,
        data.source.shape,
        tuple(classifier.mean.flatten().tolist()),
        tuple(classifier.std.flatten().tolist()),
    )
