"""Blocks of finished rows, saved while a longer computation is under way, so that it can resume."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from robustsigma.runs.files import read_arrays, write_arrays

# Seconds. An interrupt loses at most this much work, and the current batch.
FLUSH_INTERVAL = 5.0

Rows = dict[str, np.ndarray]


class Blocks:
    """Rows of arrays in the order in which they were added, saved every `FLUSH_INTERVAL` seconds.

    Args:
        folder: made when there is something to save. Rows that an earlier process saved there come first. None saves
            nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        # Rows of later files follow those of earlier ones: without one of them, all are in the wrong place.
        remedy = f"delete the folder {folder}, and the same command makes its rows again"
        files = () if folder is None else sorted(folder.glob("*.npz"))
        self._rows: list[Rows] = [read_arrays(path, remedy=remedy) for path in files]
        self._saved = self._files = len(self._rows)
        self._time = time.monotonic()

    def __len__(self) -> int:
        return sum(len(next(iter(rows.values()))) for rows in self._rows)

    def add(self, rows: Rows) -> None:
        """Add rows, at least one."""
        self._rows.append(rows)
        if time.monotonic() - self._time >= FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Save the rows that are not saved yet."""
        if self.folder is not None and self._saved < len(self._rows):
            path = self.folder / f"{self._files:05}.npz"
            write_arrays(path, _joined(self._rows[self._saved :]), compress=False)
            self._saved, self._files, self._time = len(self._rows), self._files + 1, time.monotonic()

    def all(self) -> Rows:
        """Return all rows; an empty dict if there are none."""
        return _joined(self._rows) if self._rows else {}

    def remove(self) -> None:
        """Remove the folder, once the rows are in a file of their own."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _joined(rows: list[Rows]) -> Rows:
    return {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}
