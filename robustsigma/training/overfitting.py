"""Catastrophic overfitting: one-step training that becomes robust to its own step alone, seen while it happens."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from robustsigma.data.banks import unbanked
from robustsigma.data.dataset_spec import Batch, Split
from robustsigma.data.loading import load_batch, subsample
from robustsigma.data.module import RobustDataModule
from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import FGSM, NFGSM, PGD, Mixture, Perturbation

Action = Literal["warn", "stop", "fall_back"]

_PROBE_STEPS = 10
_LOST = 0.75  # of the best accuracy under the probe


class CatastrophicOverfitting(UserWarning):
    """The accuracy under PGD fell, and the accuracy under the training attack did not or by less than half as much."""


@dataclass(frozen=True)
class Check:
    """One look at the fixed images.

    Attributes:
        epoch: in which it was made.
        step: optimizer steps before it.
        probe: accuracy under the probe, in [0, 1].
        attack: accuracy under the training perturbation, in [0, 1].
        tripped: whether this is catastrophic overfitting.
    """

    epoch: int
    step: int
    probe: float
    attack: float
    tripped: bool


class OverfittingMonitor(pl.Callback):
    """Watches the live network under PGD on a fixed batch, and acts when one-step training overfits to its step.

    FGSM training may lose all its robustness within an epoch while its own loss goes on falling (Wong et al., 2020,
    section 5.4; Andriushchenko and Flammarion, 2020): a random start makes that rarer, and does not cure it. It trips
    when the accuracy under the probe is more than `drop` below its best so far, or has lost three quarters of a best
    that was never so high (and more than the chance of drawing the images explains), and the accuracy under the
    training perturbation has fallen less than half as much from its own best. It logs `monitor_probe_acc` and
    `monitor_attack_acc`; `checks` holds every look. Where the data module has a `Ramp`, both are measured as
    strong as the ramp makes the training in the epoch of the look.

    Args:
        probe: the attack that tells, which no ramp changes; None is PGD of 10 steps with the ball of the first FGSM,
            NFGSM or PGD in the data module's `train_perturbation`.
        action: on a trip. "warn" warns, once for each fall. "stop" warns and ends the training. "fall_back" warns,
            puts back the weights and the optimizer's state of the last look that was sound (the learning rate goes
            on as scheduled), and trains on with PGD of the probe's steps (10 for another probe) in the place of each
            FGSM and NFGSM, with the same eps: to go on with the same attack would repeat the fall.
        drop: the fall of accuracy that counts, in (0, 1]; Wong et al. stop at 0.2.
        images: in the fixed batch, drawn by the data module's seed, not augmented.
        split: from which they come.
        every: steps between looks; None looks at the end of each epoch.

    Raises:
        ValueError: at the start of the training, if its data module is no `RobustDataModule`, has no training
            perturbation or none that `probe` or `action` needs.
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
        if probe is not None and not isinstance(probe, Perturbation):
            raise validation.fail("probe", "a Perturbation or None", type(probe).__name__)
        validation.choice("action", action, ("warn", "stop", "fall_back"))
        drop = validation.number("drop", drop, 0, 1, open_low=True)
        images = validation.integer("images", images, 1)
        validation.choice("split", split, ("train", "val", "test"))
        if every is not None:
            every = validation.integer("every", every, 1)
        self.probe, self.action, self.drop = probe, action, drop
        self.images, self.split, self.every = images, split, every
        self.checks: list[Check] = []
        self.fell_back = False
        self._good: tuple[dict[str, Any], list[dict[str, Any]]] | None = None
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None
        self._original: Perturbation | None = None

    @property
    def trips(self) -> list[Check]:
        """The looks that tripped."""
        return [check for check in self.checks if check.tripped]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the fixed batch."""
        data = _data(trainer)
        self._original = _perturbation(data)
        self._probe(self._original)
        if self.action == "fall_back":
            safer(self._original, _PROBE_STEPS)  # a training without FGSM has nothing to fall back to
        dataset = data.split(self.split)
        found = subsample(len(dataset), data.limits.get(self.split), data.seed)  # type: ignore[arg-type]
        indices = [found[i] for i in subsample(len(found), self.images, data.seed)]
        x, y = load_batch(dataset, indices)
        device = pl_module.device
        self._batch = x.to(device), y.to(device), torch.tensor(indices, device=device)
        if self.fell_back:  # resumed after the fall
            self._replace(data)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights to fall back to: those of the start, or of the checkpoint."""
        self._keep(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look, every so many steps."""
        if self.every is not None and (batch_idx + 1) % self.every == 0:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look, at the end of an epoch."""
        if self.every is None:
            self._look(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the data module its own perturbation back, and free the memory."""
        if self._original is not None:
            _data(trainer).train_perturbation = self._original
        self._good = self._batch = self._original = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"checks": [asdict(check) for check in self.checks], "fell_back": self.fell_back}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.checks = [Check(**check) for check in state_dict["checks"]]
        self.fell_back = state_dict["fell_back"]

    def _probe(self, attack: Perturbation) -> Perturbation:
        if self.probe is not None:
            return self.probe
        probe = probe_for(attack)
        if probe is None:
            raise validation.fail("probe", "a Perturbation, as training has no FGSM or PGD to take eps from", "None")
        return probe

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = _data(trainer)
        attack = unbanked(_perturbation(data))
        if data.ramp is not None:
            attack = data.ramp.at(attack, trainer.current_epoch)
        under = {"probe": self._probe(attack), "attack": attack}
        found = {name: self._accuracy(name, attack, data.seed, pl_module) for name, attack in under.items()}
        # Every process sees the same images; one decides, so that rounding cannot make them part ways.
        found = trainer.strategy.broadcast(found)
        best = {name: max([getattr(c, name) for c in self.checks], default=0.0) for name in found}
        fall = {name: best[name] - found[name] for name in found}
        tripped = self._far(best["probe"], fall["probe"]) and fall["attack"] < fall["probe"] / 2
        first = tripped and not (self.checks and self.checks[-1].tripped)
        self.checks.append(Check(trainer.current_epoch, trainer.global_step, **found, tripped=tripped))
        pl_module.log_dict({f"monitor_{name}_acc": value for name, value in found.items()}, sync_dist=True)
        if not tripped:
            self._keep(trainer, pl_module)
            return
        if first and trainer.is_global_zero:
            warnings.warn(self._message(fall["probe"]), CatastrophicOverfitting, stacklevel=2)
        if self.action == "stop":
            trainer.should_stop = True
        elif self.action == "fall_back" and not self.fell_back:
            self._fall_back(trainer, pl_module, data)

    def _far(self, best: float, fall: float) -> bool:
        assert self._batch is not None
        by_chance = 3 * (best * (1 - best) / len(self._batch[0])) ** 0.5
        return fall > self.drop or fall > max(_LOST * best, by_chance)

    def _accuracy(self, name: str, attack: Perturbation, seed: int, pl_module: pl.LightningModule) -> float:
        classifier = getattr(pl_module, "classifier", None)
        if not isinstance(classifier, Classifier):
            raise validation.fail("model.classifier", "a robustsigma.Classifier", type(classifier).__name__)
        assert self._batch is not None
        x, y, indices = self._batch
        # The same noise in every look, else two looks would differ by their noise as well.
        made = attack.apply(classifier, x, y, seed=noise.image_seeds(seed, "monitor", name, 0, indices)).images
        with classifier.frozen():
            return float((classifier.logits(made).argmax(1) == y).float().mean())

    def _message(self, fall: float) -> str:
        now = self.checks[-1]
        told = {"warn": "training goes on", "stop": "training stops", "fall_back": "the last sound weights come back"}
        return (
            f"catastrophic overfitting in epoch {now.epoch}: accuracy under the probe fell by {100 * fall:.0f} points "
            f"to {100 * now.probe:.0f} %, under the training attack it is {100 * now.attack:.0f} %; {told[self.action]}"
        )

    def _keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.action == "fall_back" and not self.fell_back:
            states = [optimizer.state_dict() for optimizer in trainer.optimizers]
            self._good = copy.deepcopy((pl_module.state_dict(), states))

    def _fall_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, data: RobustDataModule) -> None:
        assert self._good is not None
        weights, states = self._good
        pl_module.load_state_dict(weights, strict=pl_module.strict_loading)
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # the schedule goes on
        self.fell_back, self._good = True, None
        self._replace(data)

    def _replace(self, data: RobustDataModule) -> None:
        probe = self._probe(_perturbation(data))
        steps = probe.steps if isinstance(probe, PGD) else _PROBE_STEPS
        data.train_perturbation = safer(_perturbation(data), steps)


def probe_for(perturbation: Perturbation) -> PGD | None:
    """Return PGD in the ball of the first gradient attack in a perturbation, or None if there is none."""
    if isinstance(perturbation, Mixture):
        probes = (probe_for(part.perturbation) for part in perturbation.parts)
        return next((probe for probe in probes if probe is not None), None)
    if isinstance(perturbation, PGD):
        return PGD(perturbation.eps, norm=perturbation.norm, steps=_PROBE_STEPS)
    return PGD(perturbation.eps, steps=_PROBE_STEPS) if isinstance(perturbation, (FGSM, NFGSM)) else None


def one_step(perturbation: Perturbation) -> bool:
    """Return whether there is an FGSM or N-FGSM in a perturbation, which training may overfit to."""
    return _safer(perturbation, _PROBE_STEPS) != perturbation


def safer(perturbation: Perturbation, steps: int) -> Perturbation:
    """Return the perturbation with PGD of so many steps and the same eps in the place of each FGSM and NFGSM.

    Raises:
        ValueError: there is none.
    """
    found = _safer(perturbation, steps)
    if found == perturbation:
        raise validation.fail("train_perturbation", "an FGSM in it, to fall back from", repr(perturbation))
    return found


def _safer(perturbation: Perturbation, steps: int) -> Perturbation:
    if isinstance(perturbation, Mixture):
        return Mixture([replace(part, perturbation=_safer(part.perturbation, steps)) for part in perturbation.parts])
    return PGD(perturbation.eps, steps=steps) if isinstance(perturbation, (FGSM, NFGSM)) else perturbation


def _data(trainer: pl.Trainer) -> RobustDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, RobustDataModule):
        raise validation.fail("datamodule", "a RobustDataModule, for the OverfittingMonitor", type(data).__name__)
    return data


def _perturbation(data: RobustDataModule) -> Perturbation:
    if data.train_perturbation is None:
        raise validation.fail("train_perturbation", "a Perturbation, for the OverfittingMonitor", "None")
    return data.train_perturbation
