"""Export of the trained weights as a safetensors file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import nn

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import gathered
from robustsigma.engine.validation import choice, fail, optional
from robustsigma.lightning.attacked_network import classifier_of
from robustsigma.lightning.checkpoints import AtomicCheckpointIO, RobustCheckpoint
from robustsigma.lightning.data_module import RobustDataModule
from robustsigma.lightning.strategies import full_state
from robustsigma.models import ModelCard, load_model, save_model
from robustsigma.models.weight_files import unwrapped, with_versions


class SafetensorsExport(pl.Callback):
    """Writes the trained weights, with what is needed to use them, when training ends.

    `robustsigma explain` and `robustsigma augment` accept the file as their model. Before the training, the file is
    written once as a trial, read and compared with the network.

    Args:
        path: path of the file; None is `model.safetensors`, or `best.safetensors`, in the logger's folder.
        which: "last" for the weights at the end, or "best" for those that the training's `RobustCheckpoint` found best.

    Raises:
        ValueError: when the training starts, without a `RobustDataModule` or a `Classifier` in the module (as
            `LitClassifier` has); if there are not as many logits as classes of the data; if the best weights are
            requested and no `RobustCheckpoint` keeps them; if the file could not be written, or if the network that
            `load_model` builds from it would give other logits.

    Example:
        >>> callback = SafetensorsExport("model.safetensors")
    """

    def __init__(self, path: str | None = None, *, which: Literal["last", "best"] = "last") -> None:
        optional("path", path, str)
        choice("which", which, ("last", "best"))
        self.path, self.which = path, which

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse before hours of training what could not be written at the end."""
        classifier, data = self._parts(trainer, pl_module)
        if self.which == "best" and not any(isinstance(c, RobustCheckpoint) for c in trainer.checkpoint_callbacks):
            raise fail("which", "'last', as no RobustCheckpoint keeps a best one", "'best'")
        path, state = self._path(trainer), full_state(classifier.net)
        if state is not None and self.which == "best":
            raise fail("which", "'last' where parameters are sharded", "'best'")
        with gathered(pl_module.modules()):
            if path is not None:
                _check_export(path, classifier, model_card(classifier, data), state)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, in one process."""
        classifier, data = self._parts(trainer, pl_module)
        path, state = self._path(trainer), full_state(classifier.net)
        if path is not None:
            with _best_weights(trainer, classifier.net) if self.which == "best" else nullcontext():
                save_model(path, classifier.net, model_card(classifier, data), state)

    def _parts(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Classifier, RobustDataModule]:
        return classifier_of(pl_module), RobustDataModule.of(trainer, type(self).__name__)

    def _path(self, trainer: pl.Trainer) -> Path | None:
        """Return where this process writes the file, or None where it writes none."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes have to ask for it
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return None
        return Path(self.path or folder / ("best.safetensors" if self.which == "best" else "model.safetensors"))


@contextmanager
def _best_weights(trainer: pl.Trainer, net: nn.Module) -> Iterator[None]:
    """Give the network its best weights for the body of a with statement."""
    paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, RobustCheckpoint)]
    if not paths or not paths[0]:
        raise fail("which", "'last', as no RobustCheckpoint kept a best one", "'best'")
    weights = AtomicCheckpointIO().load_checkpoint(paths[0])["state_dict"]
    prefix = "classifier.net."
    last = copy.deepcopy(net.state_dict())
    try:
        # Weights that the module leaves out of its checkpoints are frozen, so they are the same.
        best = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        net.load_state_dict(with_versions(net, best), strict=False)
        yield
    finally:
        net.load_state_dict(last)


def _check_export(path: Path, classifier: Classifier, card: ModelCard, state: dict[str, Any] | None) -> None:
    """Raise ValueError unless a file of a network can be written to a path, and gives the network again."""
    if path.is_dir():
        raise fail("path", "a file for the weights", f"the folder {path}")
    images = torch.rand(4, *card.shape, generator=torch.Generator().manual_seed(0)).to(classifier.mean.device)
    with classifier.frozen():
        mine, again = classifier.logits(images), classifier.logits(images)
    if mine.shape[1] != len(card.classes):
        named = card.architecture is not None and card.architecture.arguments.get("classes") == mine.shape[1]
        expected = f"{len(card.classes)}, the number of classes of the data"
        raise fail("model.net.classes" if named else "net", expected, f"{mine.shape[1]} logits")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
            trial = save_model(Path(folder) / path.name, classifier.net, card, state)
            if card.architecture is None:
                return
            loaded, _ = load_model(trial, allow=(card.architecture.name,))
    except ValueError as error:
        raise fail("net", "a network whose file can be loaded again, for SafetensorsExport", error) from error
    except OSError as error:
        told = f"{error}; make room or name another place, and run the command again"
        raise fail("path", f"a place where a file of {path.name} can be written", told) from error
    with loaded.to(images.device).frozen():
        theirs = loaded.logits(images)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in classifier.parameters())
    tolerance = (2e-2 if half else 1e-4) * float(mine.abs().max()) + 2 * float((mine - again).abs().max())
    if not torch.allclose(mine, theirs, rtol=0, atol=tolerance):
        expected = f"the network that its attribute `architecture` ({card.architecture.name}) describes"
        got = "one with other logits; build it by your own function, or set net.architecture = None"
        raise fail("net", f"{expected}, for SafetensorsExport", got)


def model_card(classifier: Classifier, data: RobustDataModule) -> ModelCard:
    """Return the card of a classifier that was trained on a data module."""
    return ModelCard(
        getattr(unwrapped(classifier.net), "architecture", None),
        data.dataset.classes,
        data.dataset.shape,
        tuple(classifier.mean.flatten().tolist()),
        tuple(classifier.std.flatten().tolist()),
        data.dataset.geometry,
    )
