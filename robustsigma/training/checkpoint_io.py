"""Checkpoints that are whole or not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from robustsigma.files import write_atomically


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
