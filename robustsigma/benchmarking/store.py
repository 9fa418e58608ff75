"""Files of a benchmark by model; finished files stay, so an interrupted run can resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustsigma.benchmarking.evaluated_images import EvaluatedImages
from robustsigma.engine.checks import Flag
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import read_json, write_atomically, write_json


class BenchmarkStore:
    """One file of scores for each model, and what else a run decides.

    Args:
        folder: made if it does not exist.
        settings: settings of the run, as plain JSON types. A folder with other settings is refused.

    Raises:
        ValueError: naming the first setting that differs.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        init_run_dir(folder, settings)
        self._images = folder / "evaluated_images.json"

    def write_images(self, found: EvaluatedImages) -> None:
        """Write which images are evaluated."""
        targets = {name: each.tolist() for name, each in found.targets.items()}
        write_json(self._images, {**found._asdict(), "labels": found.labels.tolist(), "targets": targets})

    def read_images(self) -> EvaluatedImages | None:
        """Return which images are evaluated, or None if that is not decided yet."""
        if not self._images.is_file():
            return None
        found = read_json(self._images)
        found["labels"] = torch.tensor(found["labels"])
        found["targets"] = {name: torch.tensor(targets) for name, targets in found["targets"].items()}
        return EvaluatedImages(**found)

    def scores(self, model: str) -> Path:
        """Return the file of everything that was measured of a model."""
        return self.folder / "scores" / f"{model}.npz"

    def write_network(self, model: str, flags: Sequence[Flag]) -> None:
        """Write the flags of a model's network."""
        write_json(self._network(model), {"flags": [dataclasses.asdict(flag) for flag in flags]})

    def read_network(self, model: str) -> list[Flag] | None:
        """Return the flags of a model's network, or None if it was not checked yet."""
        path = self._network(model)
        return [Flag(**entry) for entry in read_json(path)["flags"]] if path.is_file() else None

    def _network(self, model: str) -> Path:
        return self.folder / "networks" / f"{model}.json"

    def leave_out(self, model: str, method: str, reason: str) -> None:
        """Write why a method cannot explain a model."""
        write_atomically(self._reason(model, method), reason.encode())

    def left_out(self, model: str, method: str) -> str | None:
        """Return why a method cannot explain a model, or None."""
        path = self._reason(model, method)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _reason(self, model: str, method: str) -> Path:
        return self.folder / "left_out" / model / f"{method}.txt"
