"""Images that are done, kept on the way to the file that will hold them all."""

from __future__ import annotations

import io
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from robustsigma.files import read_arrays, write_atomically

# An interrupt loses the batch at hand and no more seconds of work than this.
OFTEN = 5.0

Rows = dict[str, np.ndarray]


class Parts:
    """Rows of arrays in the order in which they were added, kept in a folder every few seconds.

    Args:
        folder: made when there is something to keep. What an earlier process kept there are the first rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The rows of later files follow those of earlier ones: without one of them, all are in the wrong place.
        remedy = f"delete the folder {folder}, and the same command makes its rows again"
        self._rows: list[Rows] = [read_arrays(path, remedy=remedy) for path in sorted(folder.glob("*.npz"))]
        self._kept = self._files = len(self._rows)
        self._at = time.monotonic()

    def __len__(self) -> int:
        return sum(len(next(iter(rows.values()))) for rows in self._rows)

    def add(self, rows: Rows) -> None:
        """Add rows, at least one."""
        self._rows.append(rows)
        if time.monotonic() - self._at >= OFTEN:
            buffer = io.BytesIO()
            np.savez(buffer, **_joined(self._rows[self._kept :]))  # type: ignore[arg-type]
            write_atomically(self.folder / f"{self._files:05}.npz", buffer.getvalue())
            self._kept, self._files, self._at = len(self._rows), self._files + 1, time.monotonic()

    def all(self) -> Rows:
        """Return all rows; none where none were added."""
        return _joined(self._rows) if self._rows else {}

    def remove(self) -> None:
        """Remove the folder, when the rows are in a file of their own."""
        shutil.rmtree(self.folder, ignore_errors=True)


class EpochKeeper(pl.Callback):
    """Keeps a training's state at the end of an epoch, where some seconds have passed since it was kept last.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        if time.monotonic() - self._at >= OFTEN:
            trainer.save_checkpoint(self.path)
            self._at = time.monotonic()


def _joined(rows: list[Rows]) -> Rows:
    found: dict[str, Any] = {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}
    return found
