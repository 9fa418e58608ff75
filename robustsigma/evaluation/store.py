"""Files of an evaluation by seed, regime and condition; finished files stay, so an interrupted run can resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.models import ModelCard, load_model, save_model
from robustsigma.runs.blocks import Blocks
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import damaged, read_json, write_atomically, write_json


class RobustnessStore:
    """Models, samples and outcomes.

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
        return self._file("models", seed, regime, ".json")

    def checkpoint(self, seed: int, regime: str) -> Path:
        """Return the file of an unfinished training."""
        return self._file("models", seed, regime, ".ckpt")

    def samples(self, seed: int, name: str) -> Path:
        """Return the file of images made against the base model."""
        return self._file("samples", seed, name, ".safetensors")

    def outcomes(self, seed: int, regime: str, condition: str) -> Path:
        """Return the file of one cell's outcomes."""
        return outcomes_path(self.folder, seed, regime, condition)

    def attack_checks(self, seed: int, regime: str) -> Path:
        """Return the file of a model's attack checks."""
        return self._file("checks", seed, regime, ".npz")

    def blocks(self, path: Path, size: int = 0) -> Blocks:
        """Return the finished rows of a file that is not complete yet, of `size` rows in all."""
        return Blocks(path.with_suffix(".parts"), size)

    def _file(self, kind: str, seed: int, name: str, suffix: str) -> Path:
        return self.folder / kind / f"seed{seed}" / f"{_flat(name)}{suffix}"

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

    def write_samples(self, seed: int, name: str, tensors: dict[str, Tensor]) -> None:
        """Write images made against the base model, with their labels and indices."""
        write_atomically(self.samples(seed, name), save({key: each.contiguous() for key, each in tensors.items()}))

    def read_samples(self, seed: int, name: str, outcomes: Path) -> dict[str, Tensor]:
        """Read images made against the base model.

        Args:
            seed: seed of the training.
            name: name of the condition.
            outcomes: file of the test that makes them, which is repeated only where the file does not exist.

        Raises:
            ValueError: a damaged file.
        """
        path = self.samples(seed, name)
        try:
            return load_file(path)
        except SafetensorError as error:
            remedy = f"delete it and {outcomes}, and the same command makes both again"
            raise damaged(path, "a safetensors file", error, remedy) from error

    def read_outcomes(self, seed: int, regime: str, condition: str) -> Outcomes:
        """Read one cell's outcomes."""
        return Outcomes.read(self.outcomes(seed, regime, condition))


def model_path(folder: Path, seed: int, regime: str) -> Path:
    """Return the file of a model's weights in a run's folder."""
    return folder / "models" / f"seed{seed}" / f"{_flat(regime)}.safetensors"


def outcomes_path(folder: Path, seed: int, regime: str, condition: str) -> Path:
    """Return the file of one cell's outcomes in a run's folder."""
    return folder / "outcomes" / f"seed{seed}" / _flat(regime) / f"{_flat(condition)}.npz"


def _flat(name: str) -> str:
    return name.replace("/", ".")
