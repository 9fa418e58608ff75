"""Callbacks: what the augmentation did, and the trained weights as safetensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from robustsigma.data.banks import CacheStats
from robustsigma.data.dataset_spec import Batch
from robustsigma.data.module import RobustDataModule
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Perturbed
from robustsigma.engine.validation import choice, fail, optional
from robustsigma.models import ModelCard, load_model, save_model
from robustsigma.models.weight_files import unwrapped
from robustsigma.training.checkpoint import RobustCheckpoint
from robustsigma.training.checkpoint_io import AtomicCheckpointIO


@dataclass(frozen=True)
class AugmentationTotals:
    """What was made for training.

    Attributes:
        samples: images that were changed.
        searched: images for which a search was run (SIGMA's walk).
        converged: searches that reached their goal.
        steps: of all searches together.
        seconds: spent in perturbations, on the host's clock, over all processes.
        wanted: SIGMA samples that a bank was asked for.
        served: those that came from it.
        expired: those of which it had one that was too old.
        stale: those of which it had one that had fooled the network, which classifies it right by now.
        ages: sum of the served samples' ages, in epochs.
    """

    samples: int = 0
    searched: int = 0
    converged: int = 0
    steps: int = 0
    seconds: float = 0.0
    wanted: int = 0
    served: int = 0
    expired: int = 0
    stale: int = 0
    ages: int = 0

    def __add__(self, other: AugmentationTotals) -> AugmentationTotals:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return AugmentationTotals(*(a + b for a, b in pairs))


def counts(made: Perturbed, clean: Tensor) -> Tensor:
    """Return the first four of `AugmentationTotals` for each image, int64 (B, 4), without waiting for the device."""
    changed = (made.images != clean).flatten(1).any(1)
    return torch.stack([changed, made.searched, made.searched & made.converged, made.steps], dim=1)


class AugmentationStatistics(pl.Callback):
    """Logs each epoch what the training perturbation did.

    `augment_samples_per_second`, `augment_seconds`, and where a search was run `augment_converged` (the share that
    reached its goal) and `augment_steps` (mean). Where a bank was asked for SIGMA samples, `bank_hit_rate` (the share
    that came from it), `bank_mean_age` (of those, in epochs), and the shares that it had, but not for use:
    `bank_expired` (too old) and `bank_relearned` (classified right by now). `totals` holds the sums over all epochs.
    """

    def __init__(self) -> None:
        self.totals = AugmentationTotals()
        self._counts: Tensor | None = None
        self._seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start a new epoch's sums."""
        self._counts, self._seconds = None, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add a batch, without waiting for the device."""
        if batch.made is None or batch.clean is None:
            return
        bank = CacheStats.empty(batch.images) if batch.cache_stats is None else batch.cache_stats
        made = counts(batch.made, batch.clean) * batch.counted[:, None]
        sums = torch.cat([made.sum(0), bank.totals])
        self._counts = sums if self._counts is None else self._counts + sums
        self._seconds += batch.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch."""
        if self._counts is None:
            return
        # Apple's GPUs have no double precision.
        where = "cpu" if self._counts.device.type == "mps" else self._counts.device
        seconds = torch.tensor([self._seconds], dtype=torch.float64, device=where)
        sums = torch.cat([self._counts.to(where).double(), seconds])
        *whole, seconds = torch.as_tensor(trainer.strategy.reduce(sums, reduce_op="sum")).tolist()
        samples, searched, converged, steps, wanted, served, expired, stale, ages = map(int, whole)
        now = AugmentationTotals(samples, searched, converged, steps, seconds, wanted, served, expired, stale, ages)
        self.totals += now
        logged = {"augment_seconds": seconds, "augment_samples_per_second": now.samples / seconds if seconds else 0.0}
        if now.searched:
            logged |= {"augment_converged": now.converged / now.searched, "augment_steps": now.steps / now.searched}
        if now.wanted:
            logged |= {f"bank_{name}": getattr(now, name) / now.wanted for name in ("expired", "stale")}
            logged["bank_hit_rate"] = now.served / now.wanted
        if now.served:
            logged["bank_mean_age"] = now.ages / now.served
        pl_module.log_dict(logged, sync_dist=True)  # they are those of all processes: it keeps Lightning's advice away

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return asdict(self.totals)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.totals = AugmentationTotals(**state_dict)


class SafetensorsExport(pl.Callback):
    """Writes the trained weights, with what is needed to use them, when training ends.

    `robustsigma explain` and `robustsigma augment` take the file as their model.

    Args:
        path: of the file; None is `model.safetensors` in the logger's folder, or `best.safetensors`.
        which: "last", or "best" for those that the training's `RobustCheckpoint` found best.

    Before the training the file is written once beside its place, read and compared with the network.

    Raises:
        ValueError: when the training starts, without a `RobustDataModule` or a `Classifier` in the module (as
            `LitClassifier` has); where the best weights are asked for and no `RobustCheckpoint` keeps them; and where
            the file could not be written, or the network that `load_model` builds of it would answer otherwise.
    """

    def __init__(self, path: str | None = None, *, which: Literal["last", "best"] = "last") -> None:
        optional("path", path, str)
        choice("which", which, ("last", "best"))
        self.path, self.which = path, which

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what could not be written at the end, before hours of training."""
        classifier, data = self._parts(trainer, pl_module)
        if self.which == "best" and not any(isinstance(c, RobustCheckpoint) for c in trainer.checkpoint_callbacks):
            raise fail("which", "'last', as no RobustCheckpoint keeps a best one", "'best'")
        path = self._path(trainer)
        if path is not None:
            _check_export(path, classifier, card_of(classifier, data))

    @staticmethod
    def _parts(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Classifier, RobustDataModule]:
        classifier, data = getattr(pl_module, "classifier", None), getattr(trainer, "datamodule", None)
        if not isinstance(classifier, Classifier) or not isinstance(data, RobustDataModule):
            told = "SafetensorsExport beside a LitClassifier and a RobustDataModule"
            beside = "no data module" if data is None else type(data).__name__
            raise fail("callbacks", told, f"{type(pl_module).__name__} and {beside}")
        return classifier, data

    def _path(self, trainer: pl.Trainer) -> Path | None:
        """Return where this process writes the file, or None where it writes none."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return None
        return Path(self.path or folder / ("best.safetensors" if self.which == "best" else "model.safetensors"))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, in one process."""
        classifier, data = self._parts(trainer, pl_module)
        path = self._path(trainer)
        if path is not None:
            with self._best(trainer, classifier.net) if self.which == "best" else nullcontext():
                save_model(path, classifier.net, card_of(classifier, data))

    @staticmethod
    @contextmanager
    def _best(trainer: pl.Trainer, net: nn.Module) -> Iterator[None]:
        """Give the network its best weights for a while."""
        paths = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, RobustCheckpoint)]
        if not paths or not paths[0]:
            raise fail("which", "'last', as no RobustCheckpoint kept a best one", "'best'")
        weights = AtomicCheckpointIO().load_checkpoint(paths[0])["state_dict"]
        prefix = "classifier.net."
        last = copy.deepcopy(net.state_dict())
        try:
            # What the module leaves out of its checkpoints is as it was then: it is frozen.
            net.load_state_dict({k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}, False)
            yield
        finally:
            net.load_state_dict(last)


def _check_export(path: Path, classifier: Classifier, card: ModelCard) -> None:
    """Raise ValueError unless a file of a network can be written in a place, and gives the network again."""
    if path.is_dir():
        raise fail("path", "a file for the weights", f"the folder {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
            trial = save_model(Path(folder) / path.name, classifier.net, card)
            if card.architecture is None:
                return
            loaded, _ = load_model(trial, allow=(card.architecture.name,))
    except ValueError as error:
        raise fail("net", "a network whose file can be loaded again, for SafetensorsExport", error) from error
    except OSError as error:
        raise fail("path", f"a place where a file of {path.name} can be written", error) from error
    device = classifier.mean.device
    images = torch.rand(4, *card.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with classifier.frozen():
        mine, again = classifier.logits(images), classifier.logits(images)
    with loaded.to(device).frozen():
        theirs = loaded.logits(images)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in classifier.parameters())
    tolerance = (2e-2 if half else 1e-4) * float(mine.abs().max()) + 2 * float((mine - again).abs().max())
    if not torch.allclose(mine, theirs, rtol=0, atol=tolerance):
        expected = f"the network that its attribute `architecture` ({card.architecture.name}) describes"
        told = "one with other logits; build it by a function of yours, or set net.architecture = None"
        raise fail("net", f"{expected}, for SafetensorsExport", told)


def card_of(classifier: Classifier, data: RobustDataModule) -> ModelCard:
    """Return the card of a classifier that was trained on a data module."""
    return ModelCard(
        getattr(unwrapped(classifier.net), "architecture", None),
        data.dataset.classes,
        data.dataset.shape,
        tuple(classifier.mean.flatten().tolist()),
        tuple(classifier.std.flatten().tolist()),
        data.dataset.geometry,
    )
