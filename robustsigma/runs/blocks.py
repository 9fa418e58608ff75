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

    Rows are copied into a few long arrays: small ones that stay would keep the memory between them from being reused.

    Args:
        folder: made when there is something to save. Rows that an earlier process saved there come first. None saves
            nothing.
        size: number of rows that are expected in all.
    """

    def __init__(self, folder: Path | None, size: int = 0) -> None:
        self.folder = folder
        # Rows of later files follow those of earlier ones: without one of them, all are in the wrong place.
        remedy = f"delete the folder {folder}, and the same command makes its rows again"
        files = () if folder is None else sorted(folder.glob("*.npz"))
        self._columns: Rows = {}
        self._size, self._count = size, 0
        for path in files:
            self._append(read_arrays(path, remedy=remedy))
        self._saved, self._files, self._time = self._count, len(files), time.monotonic()

    def __len__(self) -> int:
        return self._count

    def _append(self, rows: Rows) -> None:
        start, self._count = self._count, self._count + len(next(iter(rows.values())))
        for name, values in rows.items():
            column = self._columns.get(name)
            if column is None or len(column) < self._count:
                # A little more than needed, as each growth copies what is there.
                longer = np.empty((max(self._size, self._count + start // 2), *values.shape[1:]), values.dtype)
                longer[:start] = 0 if column is None else column[:start]
                column = self._columns[name] = longer
            column[start : self._count] = values

    def add(self, rows: Rows) -> None:
        """Add rows, at least one."""
        self._append(rows)
        if time.monotonic() - self._time >= FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Save the rows that are not saved yet."""
        if self.folder is not None and self._saved < self._count:
            rows = {name: column[self._saved : self._count] for name, column in self._columns.items()}
            write_arrays(self.folder / f"{self._files:05}.npz", rows, compress=False)
            self._saved, self._files, self._time = self._count, self._files + 1, time.monotonic()

    def all(self) -> Rows:
        """Return all rows; an empty dict if there are none."""
        return {name: column[: self._count] for name, column in self._columns.items()}

    def remove(self) -> None:
        """Remove the folder, once the rows are in a file of their own."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
