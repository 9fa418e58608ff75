"""The folder of an evaluation: what is finished stays, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.parts import Parts
from robustsigma.files import damaged, init_run_dir, read_json, write_atomically
from robustsigma.models import ModelCard, load_model, save_model


class Store:
    """Models, samples and outcomes by seed, regime and condition.

    Args:
        folder: made if it is not there.
        settings: of the run, as plain JSON types. A folder with other settings is refused.

    Raises:
        ValueError: naming the first setting that differs.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        init_run_dir(folder, settings)

    def model(self, seed: int, regime: str) -> Path:
        """Return the place of a model's weights."""
        return self.folder / "models" / f"seed{seed}" / f"{_flat(regime)}.safetensors"

    def has_model(self, seed: int, regime: str) -> bool:
        """Return whether the model is trained."""
        return self.model(seed, regime).is_file() and self._notes(seed, regime).is_file()

    def write_model(self, seed: int, regime: str, net: nn.Module, card: ModelCard, notes: dict[str, Any]) -> None:
        """Write weights, and notes on the training."""
        write_atomically(self._notes(seed, regime), json.dumps(notes).encode())
        save_model(self.model(seed, regime), net, card)
        self.checkpoint(seed, regime).unlink(missing_ok=True)

    def checkpoint(self, seed: int, regime: str) -> Path:
        """Return the place of the state of a training that is under way."""
        return self.model(seed, regime).with_suffix(".ckpt")

    def adopt_model(self, seed: int, regime: str, other: Store) -> None:
        """Take over a model from another folder, where it was trained in the same way, unless there is one."""
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

    def _notes(self, seed: int, regime: str) -> Path:
        return self.model(seed, regime).with_suffix(".json")

    def samples(self, seed: int, name: str) -> Path:
        """Return the place of images made against the base model."""
        return self.folder / "samples" / f"seed{seed}" / f"{_flat(name)}.safetensors"

    def write_samples(self, seed: int, name: str, tensors: dict[str, Tensor]) -> None:
        """Write images and what belongs to them."""
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        write_atomically(self.samples(seed, name), save(contiguous))

    def read_samples(self, seed: int, name: str, outcomes: Path) -> dict[str, Tensor]:
        """Read what `write_samples` wrote.

        Args:
            seed: of the training.
            name: of the condition.
            outcomes: of the test that makes them, which is repeated only where it is not there.

        Raises:
            ValueError: a damaged file.
        """
        path = self.samples(seed, name)
        try:
            return load_file(path)
        except SafetensorError as error:
            remedy = f"delete it and {outcomes}, and the same command makes both again"
            raise damaged(path, "a safetensors file", error, remedy) from error

    def parts(self, path: Path) -> Parts:
        """Return what is kept on the way to a file."""
        return Parts(path.with_suffix(".parts"))

    def outcomes(self, seed: int, regime: str, condition: str) -> Path:
        """Return the place of one cell's outcomes."""
        return self.folder / "outcomes" / f"seed{seed}" / _flat(regime) / f"{_flat(condition)}.npz"

    def read_outcomes(self, seed: int, regime: str, condition: str) -> Outcomes:
        """Read one cell's outcomes."""
        return Outcomes.read(self.outcomes(seed, regime, condition))

    def diagnosis(self, seed: int, regime: str) -> Path:
        """Return the place of a model's diagnosis."""
        return self.folder / "checks" / f"seed{seed}" / f"{_flat(regime)}.npz"


def _flat(name: str) -> str:
    return name.replace("/", ".")
