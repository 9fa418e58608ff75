"""A data module with hyperparameters of plain types, which refuses a Trainer of another package."""

from __future__ import annotations

from inspect import currentframe
from types import FrameType
from typing import Any, NoReturn, TypeVar

import pytorch_lightning as pl
from torch.utils.data import Dataset, Sampler

from robustsigma.data.datasets import Datasets
from robustsigma.engine.validation import fail, plain

T = TypeVar("T", bound="GuardedDataModule")
_PACKAGE = "a Trainer of the package pytorch_lightning (import pytorch_lightning as pl; pl.Trainer(…))"


class GuardedDataModule(pl.LightningDataModule):
    """A data module with hyperparameters of plain types, which refuses a Trainer of another package."""

    def save_hyperparameters(self, *args: Any, ignore: Any = None, frame: FrameType | None = None, **rest: Any) -> None:
        """Keep a subclass's arguments as Lightning does, but no datasets, and plain types, which can be read again."""
        caller = currentframe()
        frame = frame or (caller.f_back if caller else None)
        arguments = frame.f_locals.items() if frame else ()
        in_memory = [name for name, value in arguments if isinstance(value, Datasets | Dataset | Sampler)]
        ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
        super().save_hyperparameters(*args, ignore=[*ignored, *in_memory], frame=frame, **rest)
        self.hparams.update({name: plain(value) for name, value in self.hparams.items()})

    @classmethod
    def of(cls: type[T], trainer: pl.Trainer, callback: str) -> T:
        """Return the data module of a Trainer; raise ValueError unless it is of this class, for a callback."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, cls):
            raise fail("datamodule", f"a {cls.__name__}, for the {callback}", type(data).__name__)
        return data

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainer" and type(value).__module__.startswith("lightning."):
            raise fail("trainer", _PACKAGE, f"a Trainer of the package {type(value).__module__.split('.')[0]}")
        super().__setattr__(name, value)

    def __iter__(self) -> NoReturn:
        # A Trainer of the package `lightning` takes a data module of pytorch_lightning for a loader.
        got = "iteration over the data module itself, as by a Trainer of the package lightning"
        raise fail("trainer", _PACKAGE, got)
