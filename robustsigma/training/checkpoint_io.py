"""Checkpoints that are whole or not there, and that are read as data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from robustsigma.engine.validation import fail
from robustsigma.runs.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints in one step, so that a training can go on from one whenever it was killed.

    Lightning's own writes in the folder for temporary files and moves the file from there: between two file systems
    that is a copy, which can be cut short. `robustsigma fit` uses this one; elsewhere give it to the Trainer as one of
    its `plugins`. For paths of the local file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: naming the file, where the disk is full or nobody may write there.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint.

        Args:
            path: of the file.
            map_location: as of `torch.load`.
            weights_only: False runs code that a checkpoint may hold. None is True here, also for addresses, which
                Lightning would otherwise trust.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of file, or one that holds code.
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
