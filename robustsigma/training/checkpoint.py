"""Checkpoints of the epoch that was most robust, beside the last."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from robustsigma.data.module import RobustDataModule
from robustsigma.engine.validation import choice, fail, instance, integer, optional


class LastCheckpoint(ModelCheckpoint):
    """Keeps the state at the end of the last epoch, as `last.ckpt`: an interrupted training goes on from there.

    (Lightning's `save_last` keeps that of the last epoch that was saved, which beside a `monitor` is the best one.)

    Args:
        dirpath: folder of the file; None is the logger's.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        _check_folder(dirpath)
        super().__init__(dirpath, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that checkpoints can be written, and read again."""
        _check_before(self.dirpath, trainer, pl_module)


def _check_folder(dirpath: Any) -> None:
    optional("dirpath", dirpath, str)
    if dirpath is not None and "\0" in dirpath:
        raise fail("dirpath", "a path", repr(dirpath)[:80])


def _check_before(folder: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Check before a training what its checkpoints need.

    Raises:
        ValueError: a folder that nobody may write in.
    """
    if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
        return
    if folder is not None and "://" not in str(folder):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise fail("dirpath", "a folder to write checkpoints in", error) from error
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        given = getattr(owner, "hparams", {})
        kept = {name: value for name, value in given.items() if not isinstance(value, nn.Module)}
        buffer = BytesIO()
        torch.save(kept, buffer)
        buffer.seek(0)
        others = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
        if others:
            warnings.warn(
                f"save_hyperparameters of {type(owner).__name__}: checkpoints hold {', '.join(sorted(others))}; to "
                "resume from them, leave these out (ignore=…) or give the Trainer's fit weights_only=False",
                stacklevel=2,
            )


class RobustCheckpoint(ModelCheckpoint):
    """Keeps the weights of the epoch with the best accuracy under a validation condition, and the last ones.

    Robust accuracy falls again while training goes on (robust overfitting): the best epoch is worth nearly as much as
    any other remedy (Rice, Wong and Kolter, 2020). After each validation it logs `best_CONDITION_acc`, the best so
    far, and `last_CONDITION_acc`. As it is chosen on validation images, the best is an optimistic number; its
    accuracy on test images is not.

    Args:
        condition: one of the data module's `val_conditions`.
        dirpath: folder of the checkpoints; None is the logger's.
        save_top_k: how many of the best are kept.
        keep_last: whether the weights of the last epoch are kept, as `last.ckpt`. (Lightning's `save_last` keeps those
            of the last epoch that was saved: the best one.)

    Raises:
        ValueError: at the start of the training, if the data module has no such condition.
    """

    def __init__(
        self, condition: str = "pgd", *, dirpath: str | None = None, save_top_k: int = 1, keep_last: bool = True
    ) -> None:
        instance("condition", condition, str)
        _check_folder(dirpath)
        save_top_k = integer("save_top_k", save_top_k, 1)
        name = f"val_{condition}_acc"
        super().__init__(
            dirpath,
            f"{{epoch}}-{{{name}:.3f}}",
            monitor=name,
            mode="max",
            save_top_k=save_top_k,
            enable_version_counter=False,  # an epoch that an interrupted training does again takes its old place
        )
        self.keep_last = keep_last
        self.condition = condition
        self._best: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the condition is there."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, RobustDataModule):
            raise fail("datamodule", "a RobustDataModule, for the RobustCheckpoint", type(data).__name__)
        choice("condition", self.condition, tuple(data.val_conditions))
        _check_before(self.dirpath, trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the best accuracy so far, and the last."""
        found = trainer.callback_metrics.get(f"val_{self.condition}_acc")
        if found is None or trainer.sanity_checking:
            return
        last = float(found)
        self._best = last if self._best is None else max(self._best, last)
        names = {f"best_{self.condition}_acc": self._best, f"last_{self.condition}_acc": last}
        pl_module.log_dict(names, add_dataloader_idx=False, sync_dist=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the last weights."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.keep_last and self.dirpath is not None and not getattr(trainer, "fast_dev_run", False):
            path = Path(self.dirpath) / "last.ckpt"
            trainer.save_checkpoint(path)
            self.last_model_path = str(path)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {**super().state_dict(), "best_accuracy": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._best = state_dict.get("best_accuracy")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "best_accuracy"})
