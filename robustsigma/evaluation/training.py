"""Trainer, data and callbacks for the many short trainings of a run: no output, own seeds, own checkpoints."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import ConcatDataset, Dataset

from robustsigma.data.dataset_spec import Split
from robustsigma.engine import noise
from robustsigma.evaluation.settings import TrainerOptions
from robustsigma.lightning import AtomicCheckpointIO, RobustDataModule
from robustsigma.runs.progress import Step

SAVE_INTERVAL = 5.0  # seconds. An interrupt of a training loses at most this much work, and the current epoch


class TrainingData(RobustDataModule):
    """A `RobustDataModule` whose training images may have samples added; the report flags an unsound network.

    Args:
        args: positional arguments of RobustDataModule.
        added: samples to add to the training images, or None.
        kwargs: keyword arguments of RobustDataModule.
    """

    reports_network = True

    def __init__(self, *args: Any, added: Dataset[Any] | None = None, **kwargs: Any) -> None:
        self.added = added
        super().__init__(*args, **kwargs)

    def split(self, name: Split) -> Dataset[Any]:
        """Return the images of a split, those of training with the added samples."""
        dataset = super().split(name)
        return dataset if self.added is None or name != "train" else ConcatDataset([dataset, self.added])


class TrainingProgress(pl.Callback):
    """Reports the training step to a progress function."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report the step."""
        self.step(trainer.global_step, int(trainer.estimated_stepping_batches))


class CheckpointSaver(pl.Callback):
    """Saves a checkpoint at the end of an epoch, if `SAVE_INTERVAL` has passed since the last one.

    Args:
        path: path of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._time = path, time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        if trainer.strategy.broadcast(time.monotonic() - self._time >= SAVE_INTERVAL):
            trainer.save_checkpoint(self.path)
            self._time = time.monotonic()


def quiet_trainer(callbacks: list[pl.Callback], options: TrainerOptions | None = None, **kwargs: Any) -> pl.Trainer:
    """Return a trainer that writes and prints nothing by itself.

    On one device it ignores the variables of a launcher: each of several processes has a whole Trainer.
    """
    options = options or TrainerOptions()
    gpu = torch.cuda.is_available() and options.accelerator != "cpu"
    plugins: list[Any] = [AtomicCheckpointIO()]
    where: dict[str, Any] = {"devices": options.devices, "num_nodes": options.num_nodes}
    if options.world_size == 1:
        plugins.append(LightningEnvironment())
        where = {"devices": [torch.cuda.current_device()] if gpu else 1}
    return pl.Trainer(
        accelerator=("gpu" if gpu else "cpu") if options.accelerator == "auto" else options.accelerator,
        strategy=options.strategy,
        precision=options.precision,  # type: ignore[arg-type]
        plugins=plugins,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **where,
        **kwargs,
    )


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed the global generators, which initializers and dropout draw from, and restore them afterwards."""
    devices = range(torch.cuda.device_count())
    key = int(noise.fold(torch.tensor([seed]), name)[0])
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Lightning's notices, a dozen for each of many short trainings."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # how Lightning passes one on
            raise error.__context__ from None
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
