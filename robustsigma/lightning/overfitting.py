"""Monitor of catastrophic overfitting: a training on one-step attacks that becomes robust to its own step alone."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from robustsigma.data.dataset_spec import Split
from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine import noise
from robustsigma.engine.network_state import gathered
from robustsigma.engine.perturbations import Perturbation
from robustsigma.engine.validation import choice, fail, integer, number, optional
from robustsigma.lightning.attacked_network import classifier_of
from robustsigma.lightning.batch import Batch
from robustsigma.lightning.data_module import RobustDataModule
from robustsigma.lightning.training_perturbation import pgd_probe, without_cache

Action = Literal["warn", "stop"]

_STEPS = 10  # of the default probe
_LOST = 0.75  # fraction of the best accuracy under the probe


class CatastrophicOverfitting(UserWarning):
    """The accuracy under PGD fell, and the accuracy under the training attack fell less than half as much or not.

    Example:
        >>> warnings.simplefilter("error", CatastrophicOverfitting)  # end the training at the first one
    """


@dataclass(frozen=True)
class OverfittingCheck:
    """One measurement on the fixed images.

    Attributes:
        epoch: current epoch.
        step: number of optimizer steps before it.
        probe: accuracy under the probe, in [0, 1].
        attack: accuracy under the training perturbation, in [0, 1].
        triggered: whether this is catastrophic overfitting.
    """

    epoch: int
    step: int
    probe: float
    attack: float
    triggered: bool


class OverfittingMonitor(pl.Callback):
    """Tests the network under PGD on a fixed batch, and acts when a one-step training overfits to its step.

    FGSM training may lose all its robustness within an epoch while its own loss still falls (Wong et al., 2020,
    section 5.4; Andriushchenko and Flammarion, 2020). A random start makes that rarer but does not prevent it. The
    monitor triggers when the accuracy under the probe is more than `drop` below its best so far, or has lost three
    quarters of a smaller best (and more than the random choice of images explains). The accuracy under the training
    perturbation must have fallen less than half as much from its own best. It logs `monitor_probe_acc` and
    `monitor_attack_acc`; `checks` holds every measurement. If the data module has a `Ramp`, both attacks are as strong
    as the ramp makes the training in that epoch.

    Args:
        probe: attack that reveals overfitting; a ramp does not change it. None is PGD of 10 steps in the ball of the
            first FGSM, NFGSM or PGD of the data module's `train_perturbation`.
        action: what to do when it triggers: "warn" warns, once for each fall; "stop" also ends the training.
            `RobustCheckpoint` keeps the weights from before.
        drop: fall of accuracy that triggers, in (0, 1]; Wong et al. stop at 0.2.
        images: number of images in the fixed batch, drawn by the data module's seed and not augmented.
        split: split that they come from.
        every: number of optimizer steps between checks, over epochs; None checks at the end of each epoch.

    Raises:
        ValueError: at the start of the training, if its data module is no `RobustDataModule`, or has no training
            perturbation that `probe` needs.

    Example:
        >>> monitor = OverfittingMonitor(action="stop", images=512)
    """

    def __init__(
        self,
        probe: Perturbation | None = None,
        *,
        action: Action = "warn",
        drop: float = 0.2,
        images: int = 256,
        split: Split = "train",
        every: int | None = None,
    ) -> None:
        optional("probe", probe, Perturbation)
        choice("action", action, get_args(Action))
        choice("split", split, ("train", "val", "test"))
        self.probe, self.action, self.split = probe, action, split
        self.drop = number("drop", drop, 0, 1, open_low=True)
        self.images = integer("images", images, 1)
        self.every = None if every is None else integer("every", every, 1)
        self.checks: list[OverfittingCheck] = []
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None
        self._step = 0  # optimizer steps before the batch

    @property
    def triggered(self) -> list[OverfittingCheck]:
        """The checks that triggered."""
        return [check for check in self.checks if check.triggered]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the fixed batch."""
        data = RobustDataModule.of(trainer, type(self).__name__)
        if data.train_perturbation is None:
            raise fail("train_perturbation", "a Perturbation, for the OverfittingMonitor", "None")
        self._probe(data.train_perturbation)
        dataset = data.split(self.split)
        if isinstance(dataset, IterableDataset):
            raise fail("split", "one whose images have indices, for the OverfittingMonitor", f"{self.split}, a stream")
        found = subsample(len(dataset), data.limits.get(self.split), data.seed)  # type: ignore[arg-type]
        indices = [found[i] for i in subsample(len(found), self.images, data.seed)]
        images, labels = load_batch(dataset, indices)
        device = pl_module.device
        self._batch = images.to(device), labels.to(device), torch.tensor(indices, device=device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note the step, which a batch may leave as it is, or, with several optimizers, raise by more than one."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Check after every `every` steps."""
        if self.every is not None and trainer.global_step // self.every > self._step // self.every:
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check at the end of an epoch."""
        if self.every is None:
            self._check(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Free memory."""
        self._batch = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"checks": [asdict(check) for check in self.checks]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state."""
        self.checks = [OverfittingCheck(**check) for check in state_dict["checks"]]

    def _probe(self, attack: Perturbation) -> Perturbation:
        probe = self.probe or pgd_probe(attack, _STEPS)
        if probe is None:
            raise fail("probe", "a Perturbation, as training has no FGSM or PGD to take eps from", "None")
        return probe

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = RobustDataModule.of(trainer, type(self).__name__)
        assert data.train_perturbation is not None
        attack = without_cache(data.train_perturbation)
        if data.ramp is not None:
            attack = data.ramp.at(attack, trainer.current_epoch)
        attacks = {"probe": self._probe(attack), "attack": attack}
        with gathered(pl_module.modules()):
            found = {name: self._accuracy(name, attack, data.seed, pl_module) for name, attack in attacks.items()}
        # Every process sees the same images; one decides, so that rounding cannot make them disagree.
        found = trainer.strategy.broadcast(found)
        best = {name: max([getattr(c, name) for c in self.checks], default=0.0) for name in found}
        fall = {name: best[name] - found[name] for name in found}
        triggered = self._is_far(best["probe"], fall["probe"]) and fall["attack"] < fall["probe"] / 2
        first = triggered and not (self.checks and self.checks[-1].triggered)
        self.checks.append(OverfittingCheck(trainer.current_epoch, trainer.global_step, **found, triggered=triggered))
        pl_module.log_dict({f"monitor_{name}_acc": value for name, value in found.items()}, sync_dist=True)
        if first and trainer.is_global_zero:
            warnings.warn(self._message(fall["probe"]), CatastrophicOverfitting, stacklevel=2)
        if triggered and self.action == "stop":
            trainer.should_stop = True

    def _is_far(self, best: float, fall: float) -> bool:
        assert self._batch is not None
        by_chance = 3 * (best * (1 - best) / len(self._batch[0])) ** 0.5
        return fall > self.drop or fall > max(_LOST * best, by_chance)

    def _accuracy(self, name: str, attack: Perturbation, seed: int, pl_module: pl.LightningModule) -> float:
        classifier = classifier_of(pl_module)
        assert self._batch is not None
        images, labels, indices = self._batch
        # The same noise in every check, else two checks would also differ by their noise.
        seeds = noise.image_seeds(seed, "monitor", name, 0, indices)
        made = attack(classifier, images, labels, seed=seeds)
        with classifier.frozen():
            return float((classifier.logits(made).argmax(1) == labels).float().mean())

    def _message(self, fall: float) -> str:
        now = self.checks[-1]
        return (
            f"catastrophic overfitting in epoch {now.epoch}: accuracy under the probe fell by {100 * fall:.0f} points "
            f"to {100 * now.probe:.0f}%, under the training attack it is {100 * now.attack:.0f}%; "
            f"training {'stops' if self.action == 'stop' else 'continues'}"
        )
