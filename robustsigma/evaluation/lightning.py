"""Lightning as a run of many short trainings needs it: quiet, on one device, with seeds of its own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment

from robustsigma.engine import noise
from robustsigma.lightning import AtomicCheckpointIO


def quiet_trainer(callbacks: list[pl.Callback], **kwargs: Any) -> pl.Trainer:
    """Return a trainer on one device that writes and says nothing by itself.

    One of several processes is a whole Trainer of its own: what a launcher says of the others is not for Lightning.
    """
    gpu = torch.cuda.is_available()
    return pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=[torch.cuda.current_device()] if gpu else 1,
        plugins=[LightningEnvironment(), AtomicCheckpointIO()],
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed the global generators, which initializers and dropout draw from, and give them back as they were."""
    devices = range(torch.cuda.device_count())
    key = int(noise.fold(torch.tensor([seed]), name)[0])
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's notices, a dozen for each of many short trainings, out of the progress."""
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
