"""One robustness evaluation in one folder: trains, tests and checks every model that is missing."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import best_device
from robustsigma.engine.perturbations import Mixture, MixtureComponent
from robustsigma.engine.validation import fail
from robustsigma.evaluation.attack_checks import AttackCheckResults, checked_images
from robustsigma.evaluation.block_evaluation import BlockEvaluation
from robustsigma.evaluation.given_images import GivenImages, PixelBatches
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import BASE, Regime, conditions, fingerprint, regimes
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.evaluation.settings import Evaluation, Retraining, Training
from robustsigma.evaluation.store import RobustnessStore, model_name
from robustsigma.evaluation.training import (
    CheckpointSaver,
    TrainingData,
    TrainingProgress,
    quiet,
    quiet_trainer,
    seeded,
)
from robustsigma.lightning import AugmentationStatistics, CatastrophicOverfitting, LitClassifier, OverfittingMonitor
from robustsigma.lightning.augmentation_statistics import AugmentationTotals, augmentation_counts
from robustsigma.lightning.safetensors_export import model_card
from robustsigma.lightning.training_perturbation import has_single_step
from robustsigma.models.weight_files import first_infinite, fit_state
from robustsigma.report import text
from robustsigma.runs.progress import RunProgress, Step
from robustsigma.runs.ranks import WHOLE, Phases, Ranks, Shard


class RobustnessRun:
    """One evaluation in one folder.

    Args:
        settings: what to evaluate; `resolve_settings` completes them.
        out: the folder. What an earlier run of the same settings finished there is not repeated.
        console: where progress is shown.
        ranks: processes that share the trainings and the blocks of test images.
        allow: dotted paths that a command line allowed; the folder is bound to their source as well.
    """

    def __init__(
        self, settings: Evaluation, out: Path, console: Console, ranks: Ranks | None = None, allow: Sequence[str] = ()
    ) -> None:
        self.settings, self.console, self.ranks = resolve_settings(settings), console, ranks or Ranks()
        self.store = RobustnessStore(out, fingerprint(self.settings, allow))
        self.regimes = regimes(settings)
        self.conditions = conditions(settings.conditions, transfer=len(self.regimes) > 1)

    @property
    def rows(self) -> list[tuple[int, Regime]]:
        """Seed and regime of every model."""
        return [(seed, regime) for seed in self.settings.each_seed for regime in self.regimes]

    @property
    def tested(self) -> list[tuple[int, Regime]]:
        """Seed and regime of every model that is tested."""
        return self.rows

    def run(self, phases: Phases = WHOLE) -> None:
        """Run the phases that a command carries out; finished work is not repeated."""
        checked = {self.name(*each): _title(*each) for each in self.tested}
        jobs = phases.prepare * len(self.rows) + phases.measure + phases.report * len(checked)
        with quiet(), RunProgress(jobs, self.console) as progress:
            if phases.prepare:
                self.finish_trainings(progress)
            missing = self._untrained()
            if missing:
                seed, regime = self.rows[missing[0]]
                told = f"{len(missing)} that are not, such as {regime.id} of seed {seed}; {phases.remedy}"
                raise fail("trainings", "all of them to be finished", told)
            if phases.measure:
                self._test(phases.shard, progress)
            if phases.report:
                self.evaluation.finish(self.ranks, phases.remedy)
                most = checked_images(self.settings.checks, self.images.batch_size)
                rows = subsample(self.images.count or 0, most, 0)
                self.evaluation.check_attacks(checked, rows, self.settings.checks, self.ranks, progress)

    def _are_trained(self, rows: Sequence[tuple[int, Regime]]) -> bool:
        return all(self.store.has_model(seed, regime.id) for seed, regime in rows)

    def _untrained(self) -> list[int]:
        return [place for place, (seed, regime) in enumerate(self.rows) if not self.store.has_model(seed, regime.id)]

    def finish_trainings(self, progress: RunProgress) -> None:
        """Train the models that are missing, the base models first."""
        missing, devices = self.ranks.broadcast(self._untrained()), self.settings.trainer.world_size
        if missing and devices > 1 and devices != self.ranks.world_size:
            options = self.settings.trainer
            told = f"{self.ranks.world_size} ranks; add --devices {options.devices} --num_nodes {options.num_nodes}"
            raise fail("trainer.devices", f"as many ranks as devices of a training, {devices}", told)
        for place in sorted({*range(len(self.rows))} - {*missing}):
            progress.finish(f"{_title(*self.rows[place])}: was trained before")
        for base in (True, False):
            wave = [self.rows[place] for place in missing if (self.rows[place][1].id == BASE) == base]
            for seed, regime in self.ranks.deal(wave) if devices == 1 else wave:
                with progress.job(f"{_title(seed, regime)}: training") as step:
                    self.train(seed, regime, step)
            self.ranks.barrier()
            self.ranks.wait_until_visible(partial(self._are_trained, wave))

    def name(self, seed: int, regime: str | Regime) -> str:
        """Return the name of a model's outcomes; a base model that is not trained here is the same for all seeds."""
        name = regime.id if isinstance(regime, Regime) else regime
        given = name == BASE and not self.settings.training.epochs
        return model_name(self.settings.each_seed[0] if given else seed, name)

    @cached_property
    def images(self) -> GivenImages:
        """The test images: the same for every training."""
        s = self.settings
        dataset = s.dataset.split("test")
        return GivenImages(
            PixelBatches(dataset),
            type(s.dataset).__name__,
            tuple(s.dataset.classes),
            indices=subsample(len(dataset), s.test_images, 0),  # type: ignore[arg-type]
            batch_size=s.eval_batch_size,
            num_workers=s.num_workers,
        )

    @cached_property
    def evaluation(self) -> BlockEvaluation:
        """The outcomes of the models, whose test images have the same noise under every training."""
        models = {self.name(seed, regime): (seed, regime.id) for seed, regime in self.tested}
        groups: dict[str, list[str]] = {}
        for name, (seed, _) in models.items():
            groups.setdefault(self.name(seed, BASE), []).append(name)
        return BlockEvaluation(
            self.store.folder,
            list(groups.values()),
            lambda name: self.model(*models[name]).classifier.to(best_device()),
            self.conditions,
            lambda condition, indices: noise.image_seeds(0, "test", condition, 0, indices),
            self.images,
            len(self.settings.dataset.classes),
        )

    def outcomes(self, seed: int, regime: str, condition: str) -> Outcomes:
        """Return the outcomes of a finished model under a condition, by its id."""
        return self.evaluation.outcomes(self.name(seed, regime), condition)

    def _test(self, shard: Shard | None, progress: RunProgress) -> None:
        if not self.ranks.broadcast(bool(self.evaluation.blocks.missing(shard))):
            progress.finish("test images: were shown to all models before")
            return
        models = text.count(sum(len(group) for group in self.evaluation.groups), "model")
        with progress.job(f"test images: {models} under {text.count(len(self.conditions), 'condition')}") as step:
            self.evaluation.run(self.ranks, progress, step, shard)

    def train(self, seed: int, regime: Regime, step: Step = lambda done, total: None) -> None:
        """Train one model, if it is missing; a regime needs its base model."""
        if not self.store.has_model(seed, regime.id):
            with quiet():
                self._train(seed, regime, step)

    def attack_checks(self, seed: int, regime: Regime) -> AttackCheckResults | None:
        """Return the attack checks of one model, or None if there are none with these settings."""
        return self.evaluation.checks(self.name(seed, regime), self.settings.checks)

    def model(self, seed: int, regime: str, training: Training | Retraining | None = None) -> LitClassifier:
        """Return a model: trained if its weights are there, else fresh."""
        s = self.settings
        with seeded(seed, "initial weights"):
            net = s.architecture.build(s.dataset.shape[0], len(s.dataset.classes))
        optimizer: Any = torch.optim.AdamW
        if training is not None:
            optimizer = partial(torch.optim.AdamW, lr=training.lr, weight_decay=training.weight_decay)
        assert s.mean is not None
        assert s.std is not None
        model = LitClassifier(net, mean=s.mean, std=s.std, optimizer=optimizer)
        model.classifier.checked = True  # the report flags an unsound network
        if self.store.has_model(seed, regime):
            self.store.load_weights(seed, regime, model.classifier.net)
        return model

    def _train(self, seed: int, regime: Regime, step: Step) -> None:
        start = time.perf_counter()
        first, again = self.settings.training, self.settings.retraining
        plan = first if regime.perturbation is None else again
        model = self.model(seed, BASE, plan)
        net, totals = model.classifier.net, AugmentationTotals()
        special: dict[str, Any] = {}
        multi_device = self.settings.trainer.world_size > 1
        if regime.perturbation is not None and regime.protocol == "retrain":
            make = partial(self._samples, seed, regime, model.classifier)
            special["added"], totals = self.ranks.main_first(make) if multi_device else make()
        elif regime.perturbation is not None:
            special["train_perturbation"] = Mixture([MixtureComponent(regime.perturbation, again.share)])
        data = TrainingData(
            self.settings.dataset,
            batch_size=plan.batch_size,
            num_workers=self.settings.num_workers,
            seed=seed,
            augment=first.augment,
            **special,
        )
        metrics: dict[str, float] = {}
        monitors: list[OverfittingMonitor] = []
        if plan.epochs:
            statistics, checkpoint = AugmentationStatistics(), self.store.checkpoint(seed, regime.id)
            if data.train_perturbation is not None and has_single_step(data.train_perturbation):
                monitors.append(OverfittingMonitor())
            # The saver comes last, as it saves what the others have recorded.
            callbacks = [*monitors, statistics, TrainingProgress(step), CheckpointSaver(checkpoint)]
            with seeded(seed, regime.id), warnings.catch_warnings():  # dropout
                warnings.simplefilter("ignore", CatastrophicOverfitting)  # the report has it as a flag
                trainer = quiet_trainer(callbacks, self.settings.trainer, max_epochs=plan.epochs, limit_val_batches=0)
                trainer.fit(model, data, ckpt_path=checkpoint if checkpoint.is_file() else None)
            if multi_device:  # a strategy may have sharded the weights
                state = trainer.strategy.lightning_module_state_dict()
                model = self.model(seed, BASE, plan)
                model.load_state_dict(state if self.ranks.is_main else model.state_dict())
                net = model.classifier.net
            totals += statistics.totals
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        elif self.settings.architecture.weights is not None:
            fit_state(net, *self.settings.architecture.state())  # fails if the last layer is not the file's
        self._check_finite(seed, regime, net, plan)
        notes = {
            "seconds": time.perf_counter() - start,
            "augmentation": dataclasses.asdict(totals),
            "metrics": metrics,
            "overfitting": [dataclasses.asdict(check) for monitor in monitors for check in monitor.checks],
        }
        if not multi_device or self.ranks.is_main:
            self.store.write_model(seed, regime.id, net, model_card(model.classifier, data), notes)
            self.store.samples(seed, regime.id).remove()
        if multi_device:
            self.ranks.barrier()

    def _check_finite(self, seed: int, regime: Regime, net: nn.Module, plan: Training | Retraining) -> None:
        """Refuse weights that are not finite; nothing of their training stays in the folder."""
        infinite = first_infinite(net.state_dict())
        if infinite is None:
            return
        if not plan.epochs:
            raise fail("architecture", "a network of finite weights", f"NaN or infinity in {infinite}")
        self.store.checkpoint(seed, regime.id).unlink(missing_ok=True)
        self.store.samples(seed, regime.id).remove()
        rate = "training.lr" if regime.perturbation is None else "retraining.lr"
        told = (
            f"NaN or infinity in {infinite}: it diverged; nothing of it is kept; try a smaller {rate} in a new folder"
        )
        raise fail(f"training of {regime.id} (seed {seed})", "finite weights", told)

    def _samples(self, seed: int, regime: Regime, classifier: Classifier) -> tuple[TensorDataset, AugmentationTotals]:
        """Return training images perturbed against the base model: the same images in every regime."""
        assert regime.perturbation is not None
        start, device, size = time.perf_counter(), best_device(), self.settings.eval_batch_size
        dataset = self.settings.dataset.split("train")
        indices = subsample(len(dataset), self.settings.retraining.samples, seed)  # type: ignore[arg-type]
        classifier.to(device)
        blocks = self.store.samples(seed, regime.id)
        for at in range(0, len(indices), size):
            if blocks.has(at, min(at + size, len(indices))):
                continue
            chosen = indices[at : at + size]
            images, labels = (part.to(device) for part in load_batch(dataset, chosen))
            seeds = noise.image_seeds(seed, "train", regime.name, 0, torch.tensor(chosen, device=device))
            made = regime.perturbation(classifier, images, labels, seed=seeds, return_info="search")
            found = {"images": made.images, "labels": labels, "counts": augmentation_counts(made, images)}
            blocks.add(at, {key: value.cpu().numpy() for key, value in found.items()})
        rows = {key: torch.from_numpy(value) for key, value in blocks.all().items()}
        seconds = AugmentationTotals(seconds=time.perf_counter() - start)
        totals = AugmentationTotals(*rows["counts"].sum(0).tolist()) + seconds
        return TensorDataset(rows["images"], rows["labels"]), totals


def _title(seed: int, regime: Regime) -> str:
    return f"seed {seed}, {regime.id.replace('_', ' ')}"
