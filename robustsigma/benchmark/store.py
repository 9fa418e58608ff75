"""The folder of a benchmark: what is finished stays, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustsigma.benchmark.images import Judged
from robustsigma.benchmark.judge import Arrays
from robustsigma.engine.checks import Flag
from robustsigma.files import init_run_dir, read_arrays, read_json, write_atomically

_JUDGED = "judged.json"
_SHARED = ("grid/", "axes/")  # the same for every batch


class Store:
    """One file for each model, method and batch.

    Args:
        folder: made if it is not there.
        settings: of the run, as plain JSON types. A folder with other settings is refused.

    Raises:
        ValueError: naming the first setting that differs.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        init_run_dir(folder, settings)

    def write_judged(self, found: Judged) -> None:
        """Keep which images are judged."""
        said = {**found._asdict(), "labels": found.labels.tolist()}
        said["targets"] = {name: targets.tolist() for name, targets in found.targets.items()}
        write_atomically(self.folder / _JUDGED, json.dumps(said).encode())

    def read_judged(self) -> Judged | None:
        """Return which images are judged, or None where that is not kept."""
        path = self.folder / _JUDGED
        if not path.is_file():
            return None
        said = read_json(path)
        said["labels"] = torch.tensor(said["labels"])
        said["targets"] = {name: torch.tensor(targets) for name, targets in said["targets"].items()}
        return Judged(**said)

    def place(self, model: str, method: str, batch: int) -> Path:
        """Return the place of one batch."""
        return self.folder / "parts" / model / method / f"{batch:05}.npz"

    def has(self, model: str, method: str, batch: int) -> bool:
        """Return whether the batch is done."""
        return self.place(model, method, batch).is_file()

    def write(self, model: str, method: str, batch: int, arrays: Arrays) -> None:
        """Keep what was measured on a batch."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(self.place(model, method, batch), buffer.getvalue())

    def write_network(self, model: str, flags: Sequence[Flag]) -> None:
        """Keep what speaks against believing what is measured on a model."""
        write_atomically(
            self._network(model), json.dumps({"flags": [dataclasses.asdict(flag) for flag in flags]}).encode()
        )

    def read_network(self, model: str) -> list[Flag] | None:
        """Return what speaks against believing what is measured on a model, or None where nobody looked."""
        path = self._network(model)
        return [Flag(**entry) for entry in read_json(path)["flags"]] if path.is_file() else None

    def _network(self, model: str) -> Path:
        return self.folder / "parts" / model / "network.json"

    def leave_out(self, model: str, method: str, reason: str) -> None:
        """Keep why a method cannot explain a model."""
        write_atomically(self._reason(model, method), reason.encode())

    def left_out(self, model: str, method: str) -> str | None:
        """Return why a method cannot explain a model, or None."""
        path = self._reason(model, method)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _reason(self, model: str, method: str) -> Path:
        return self.folder / "parts" / model / method / "left_out.txt"

    def read(self, model: str, method: str, batches: int) -> Arrays:
        """Return a method's arrays over all batches in order; those that only some batches have end early."""
        columns: dict[str, list[np.ndarray]] = {}
        for batch in range(batches):
            for name, values in read_arrays(self.place(model, method, batch)).items():
                columns.setdefault(name, []).append(values)
        return {
            name: parts[0] if name.startswith(_SHARED) else np.concatenate(parts) for name, parts in columns.items()
        }
