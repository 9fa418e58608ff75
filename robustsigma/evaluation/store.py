"""Files of an evaluation by seed and regime; finished files stay, so an interrupted run can resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from robustsigma.models import ModelCard, load_model, save_model
from robustsigma.runs.blocks import Blocks
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import damaged, read_json, write_atomically, write_json


class RobustnessStore:
    """Models, and what was measured of them.

    Args:
        folder: made if it does not exist.
        settings: settings of the run, as plain JSON types. A folder with other settings is refused.

    Raises:
        ValueError: naming the first setting that differs.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        init_run_dir(folder, settings)

    def model(self, seed: int, regime: str) -> Path:
        """Return the file of a model's weights."""
        return model_path(self.folder, seed, regime)

    def _notes(self, seed: int, regime: str) -> Path:
        return self.model(seed, regime).with_suffix(".json")

    def checkpoint(self, seed: int, regime: str) -> Path:
        """Return the file of an unfinished training."""
        return self.model(seed, regime).with_suffix(".ckpt")

    def samples(self, seed: int, regime: str) -> Blocks:
        """Return the finished samples of an unfinished training."""
        return Blocks(self.folder / "samples" / f"{model_name(seed, regime)}.npz")

    def has_model(self, seed: int, regime: str) -> bool:
        """Return whether the model is trained."""
        return self.model(seed, regime).is_file() and self._notes(seed, regime).is_file()

    def write_model(self, seed: int, regime: str, net: nn.Module, card: ModelCard, notes: dict[str, Any]) -> None:
        """Write weights, and notes on the training."""
        write_json(self._notes(seed, regime), notes)
        save_model(self.model(seed, regime), net, card)
        self.checkpoint(seed, regime).unlink(missing_ok=True)

    def adopt_model(self, seed: int, regime: str, other: RobustnessStore) -> None:
        """Copy a model from another folder, where it was trained in the same way, unless there is one already."""
        if not self.has_model(seed, regime):
            write_atomically(self._notes(seed, regime), other._notes(seed, regime).read_bytes())
            write_atomically(self.model(seed, regime), other.model(seed, regime).read_bytes())

    def load_weights(self, seed: int, regime: str, net: nn.Module) -> None:
        """Load a model's weights into a network of its architecture; a damaged file is a ValueError."""
        path = self.model(seed, regime)
        try:
            classifier, _ = load_model(path, net=net)
        except ValueError as error:
            if isinstance(error.__cause__, SafetensorError):
                raise damaged(path, "a safetensors file", error.__cause__) from error
            raise
        classifier.train()

    def notes(self, seed: int, regime: str) -> dict[str, Any]:
        """Return the notes on a training."""
        return read_json(self._notes(seed, regime))


def model_path(folder: Path, seed: int, regime: str) -> Path:
    """Return the file of a model's weights in a run's folder."""
    return folder / "models" / f"{model_name(seed, regime)}.safetensors"


def model_name(seed: int, regime: str) -> str:
    """Return what a model's files are called."""
    return f"seed{seed}/{regime.replace('/', '.')}"
