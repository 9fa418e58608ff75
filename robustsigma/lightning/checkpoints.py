"""Checkpoints: written atomically, read as data, kept for the last epoch and for the most robust one."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from robustsigma.engine.validation import choice, fail, instance, integer, optional
from robustsigma.lightning.data_module import RobustDataModule
from robustsigma.runs.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints in one step, so that a training can resume whenever it was killed.

    Lightning's own plugin writes to the folder for temporary files and moves the file from there. Between two file
    systems that is a copy, which can be cut short. `robustsigma fit` uses this plugin; elsewhere pass it to the
    Trainer, as in `Trainer(plugins=[AtomicCheckpointIO()])`. It is for paths of the local file system.

    Example:
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: naming the file, where it cannot be written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint.

        Args:
            path: path or address of the file.
            map_location: as in `torch.load`.
            weights_only: False runs code that a checkpoint may hold. None is True here, also for addresses, which
                Lightning would otherwise trust.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is no checkpoint, or that holds code.
        """
        try:
            found = super().load_checkpoint(path, map_location, weights_only is not False)
        except FileNotFoundError:
            raise
        except Exception as error:  # a file that is no checkpoint can make the unpickler raise anything
            told = (str(error).splitlines() or [type(error).__name__])[0][:160]
            expected = "a checkpoint that torch.load reads with weights_only=True"
            raise fail("ckpt_path", expected, f"{path} ({told})") from error
        if not isinstance(found, dict) or "pytorch-lightning_version" not in found:
            raise fail("ckpt_path", "a checkpoint of a training", f"another {type(found).__name__} in {path}")
        return found


class LastCheckpoint(ModelCheckpoint):
    """Keeps the state at the end of the last epoch as `last.ckpt`, from which an interrupted training resumes.

    (Lightning's `save_last` keeps the last checkpoint that was saved; with a `monitor` that is the best one.)

    Args:
        dirpath: folder of the file; None is the logger's folder.

    Example:
        >>> trainer = Trainer(callbacks=[LastCheckpoint()], logger=False)
    """

    def __init__(self, dirpath: str | None = None) -> None:
        _check_path(dirpath)
        super().__init__(dirpath, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that checkpoints can be written and read."""
        _check_checkpoints(self.dirpath, trainer, pl_module)


class RobustCheckpoint(ModelCheckpoint):
    """Keeps the weights of the epoch with the best accuracy under a validation condition.

    Robust accuracy often falls late in a training (robust overfitting). Keeping the best epoch is worth nearly as much
    as any other remedy (Rice, Wong and Kolter, 2020). After each validation it logs `best_CONDITION_acc`, the best so
    far, and `last_CONDITION_acc`. The best is an optimistic number, as it is chosen on validation images; its accuracy
    on test images is not.

    Args:
        condition: one of the data module's `val_conditions`.
        dirpath: folder of the checkpoints; None is the logger's folder.
        save_top_k: number of best checkpoints to keep.

    Raises:
        ValueError: at the start of the training, if the data module has no such condition.

    Example:
        >>> callback = RobustCheckpoint("FGSM")
        >>> callback.monitor
        'val_FGSM_acc'
    """

    def __init__(self, condition: str = "pgd", *, dirpath: str | None = None, save_top_k: int = 1) -> None:
        instance("condition", condition, str)
        _check_path(dirpath)
        save_top_k = integer("save_top_k", save_top_k, 1)
        name = f"val_{condition}_acc"
        super().__init__(
            dirpath,
            f"{{epoch}}-{{{name}:.3f}}",
            monitor=name,
            mode="max",
            save_top_k=save_top_k,
            enable_version_counter=False,  # a resumed training overwrites the file of an epoch that it repeats
        )
        self.condition = condition
        self._best: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the condition exists, and that checkpoints can be written and read."""
        data = RobustDataModule.of(trainer, type(self).__name__)
        choice("condition", self.condition, tuple(data.val_conditions))
        _check_checkpoints(self.dirpath, trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the best accuracy so far, and the last."""
        found = trainer.callback_metrics.get(f"val_{self.condition}_acc")
        if found is None or trainer.sanity_checking:
            return
        last = float(found)
        self._best = last if self._best is None else max(self._best, last)
        names = {f"best_{self.condition}_acc": self._best, f"last_{self.condition}_acc": last}
        pl_module.log_dict(names, add_dataloader_idx=False, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {**super().state_dict(), "best_accuracy": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state."""
        self._best = state_dict.get("best_accuracy")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "best_accuracy"})


def _check_path(dirpath: Any) -> None:
    optional("dirpath", dirpath, str)
    if dirpath is not None and "\0" in dirpath:
        raise fail("dirpath", "a path", repr(dirpath)[:80])


def _check_checkpoints(folder: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Check before a training that its checkpoints can be written, and warn where they hold objects of unsafe classes.

    Raises:
        ValueError: a folder that cannot be written in.
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
        buffer = BytesIO()
        torch.save({name: value for name, value in given.items() if not isinstance(value, nn.Module)}, buffer)
        buffer.seek(0)
        others = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
        if others:
            warnings.warn(
                f"save_hyperparameters of {type(owner).__name__}: checkpoints hold {', '.join(sorted(others))}; to "
                "resume from them, leave these out (ignore=…) or give the Trainer's fit weights_only=False",
                stacklevel=2,
            )
