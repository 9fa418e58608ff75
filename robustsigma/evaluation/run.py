"""One robustness evaluation in one folder: trains, tests and checks every model that is missing."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from robustsigma.data.loading import load_batch, subsample
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import best_device
from robustsigma.engine.perturbations import Identity, Mixture, MixtureComponent
from robustsigma.engine.validation import fail
from robustsigma.evaluation.attack_checks import AttackCheckResults, AttackChecks
from robustsigma.evaluation.cost import cost_lines
from robustsigma.evaluation.outcomes import Advance, Outcomes, attack_images, transfer_images
from robustsigma.evaluation.plan import ADAPTIVE, BASE, TRANSFER, Condition, Regime, conditions, fingerprint, regimes
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.evaluation.settings import Evaluation, Retraining, Training
from robustsigma.evaluation.store import RobustnessStore
from robustsigma.evaluation.training import (
    AddedSamples,
    CheckpointSaver,
    TrainingData,
    TrainingProgress,
    quiet,
    quiet_trainer,
    seeded,
)
from robustsigma.lightning import AugmentationStatistics, CatastrophicOverfitting, LitClassifier, OverfittingMonitor
from robustsigma.lightning.augmentation_statistics import AugmentationTotals, augmentation_counts
from robustsigma.lightning.loaders import KeyedDataset, KeySampler, ResumableLoader
from robustsigma.lightning.safetensors_export import model_card
from robustsigma.lightning.training_perturbation import has_single_step
from robustsigma.models.weight_files import first_infinite, fit_state
from robustsigma.runs.blocks import Blocks
from robustsigma.runs.processes import Processes
from robustsigma.runs.progress import RunProgress, Step


class RobustnessRun:
    """One evaluation in one folder.

    Args:
        settings: what to evaluate; `resolve_settings` completes them.
        out: the folder. What an earlier run of the same settings finished there is not repeated.
        console: where progress is shown.
        processes: that share the regimes; one process trains and tests a regime.
        allow: dotted paths that a command line allowed; the folder is bound to their source as well.
    """

    def __init__(
        self,
        settings: Evaluation,
        out: Path,
        console: Console,
        processes: Processes | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        self.settings, self.console, self.processes = resolve_settings(settings), console, processes or Processes()
        self.store = RobustnessStore(out, fingerprint(self.settings, allow))
        self.regimes = regimes(settings)
        self.conditions = conditions(settings.conditions, transfer=len(self.regimes) > 1)

    def run(self) -> None:
        """Train, test and check every model that is missing."""
        checks, rows = self.settings.checks, [(seed, r) for seed in self.settings.each_seed for r in self.regimes]
        with quiet(), RunProgress((3 if checks.images else 2) * len(rows), self.console, self.processes) as progress:
            for seed, regime in self.processes.share("regimes", rows):
                title = f"seed {seed}, {regime.id.replace('_', ' ')}"
                self.finish_training(seed, regime, title, progress)
                self.finish_tests(seed, regime, title, progress)
                if self.attack_checks(seed, regime) is not None:
                    progress.finish(f"{title}: was checked before")
                elif checks.images:
                    with progress.job(f"{title}: checks of the attacks") as step:
                        found = self._check_attacks(seed, regime, step)
                        found.write(self.store.attack_checks(seed, regime.id), checks)
            self.processes.barrier("regimes")

    def finish_training(self, seed: int, regime: Regime, title: str, progress: RunProgress) -> None:
        """Train one model, if it is missing."""
        if self.store.has_model(seed, regime.id):
            progress.finish(f"{title}: was trained before")
        else:
            if regime.id != BASE:
                self.processes.wait(lambda: self.store.has_model(seed, BASE))
            with progress.job(f"{title}: training") as step:
                self._train(seed, regime, step)

    def finish_tests(self, seed: int, regime: Regime, title: str, progress: RunProgress) -> None:
        """Test one model under the conditions that are missing."""
        paths = {each.id: self.store.outcomes(seed, regime.id, each.id) for each in self.conditions}
        missing = [each for each in self.conditions if not paths[each.id].is_file()]
        for path in set(paths.values()) - {paths[each.id] for each in missing}:
            self.store.blocks(path).remove()  # of a run that was killed before it could
        if not missing:
            progress.finish(f"{title}: was tested before")
            return
        if regime.id != BASE:  # whose samples are transferred
            made = [self.store.outcomes(seed, BASE, f"{c.name}/{ADAPTIVE}")
                    for c in missing if c.attack_setting == TRANSFER]  # fmt: skip
            self.processes.wait(lambda: all(path.is_file() for path in made))
        with progress.job(f"{title}: {len(missing)} conditions") as step:
            self._say_cost(seed, regime, missing, progress)
            self._test(seed, regime, missing, step)

    def train(self, seed: int, regime: Regime) -> None:
        """Train one model, if it is missing; a regime needs its base model."""
        if not self.store.has_model(seed, regime.id):
            with quiet():
                self._train(seed, regime, lambda done, total: None)

    def attack_checks(self, seed: int, regime: Regime) -> AttackCheckResults | None:
        """Return the attack checks of one model, or None if there are none with these settings."""
        checks = self.settings.checks
        return AttackCheckResults.read(self.store.attack_checks(seed, regime.id), checks) if checks.images else None

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
        if regime.perturbation is not None and regime.protocol == "retrain":
            special["added"], totals = self._samples(seed, regime, model.classifier)
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
                trainer = quiet_trainer(callbacks, max_epochs=plan.epochs, limit_val_batches=0)
                trainer.fit(model, data, ckpt_path=checkpoint if checkpoint.is_file() else None)
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
        self.store.write_model(seed, regime.id, net, model_card(model.classifier, data), notes)
        if regime.protocol == "retrain":
            self._sample_blocks(seed, regime).remove()

    def _sample_blocks(self, seed: int, regime: Regime) -> Blocks:
        return self.store.blocks(self.store.samples(seed, f"train.{regime.id}"))

    def _check_finite(self, seed: int, regime: Regime, net: nn.Module, plan: Training | Retraining) -> None:
        """Refuse weights that are not finite; nothing of their training stays in the folder."""
        infinite = first_infinite(net.state_dict())
        if infinite is None:
            return
        if not plan.epochs:
            raise fail("architecture", "a network of finite weights", f"NaN or infinity in {infinite}")
        self.store.checkpoint(seed, regime.id).unlink(missing_ok=True)
        self._sample_blocks(seed, regime).remove()
        rate = "training.lr" if regime.perturbation is None else "retraining.lr"
        told = (
            f"NaN or infinity in {infinite}: it diverged; nothing of it is kept; try a smaller {rate} in a new folder"
        )
        raise fail(f"training of {regime.id} (seed {seed})", "finite weights", told)

    def _samples(self, seed: int, regime: Regime, classifier: Classifier) -> tuple[AddedSamples, AugmentationTotals]:
        """Return training images perturbed against the base model: the same images in every regime."""
        assert regime.perturbation is not None
        start, device, size = time.perf_counter(), best_device(), self.settings.eval_batch_size
        dataset = self.settings.dataset.split("train")
        indices = subsample(len(dataset), self.settings.retraining.samples, seed)  # type: ignore[arg-type]
        classifier.to(device)
        keyed, blocks = KeyedDataset(dataset, None, seed), self._sample_blocks(seed, regime)
        for at in range(len(blocks), len(indices), size):
            batch = keyed.__getitems__(indices[at : at + size])
            images, labels = batch.images.to(device), batch.labels.to(device)
            seeds = noise.image_seeds(seed, "train", regime.name, 0, batch.indices.to(device))
            made = regime.perturbation(classifier, images, labels, seed=seeds, return_info="search")
            found = {"images": made.images, "labels": labels, "counts": augmentation_counts(made, images)}
            blocks.add({key: value.cpu().numpy() for key, value in found.items()})
        rows = {key: torch.from_numpy(value) for key, value in blocks.all().items()}
        seconds = AugmentationTotals(seconds=time.perf_counter() - start)
        totals = AugmentationTotals(*rows["counts"].sum(0).tolist()) + seconds
        return AddedSamples(rows["images"], rows["labels"]), totals

    def _say_cost(self, seed: int, regime: Regime, missing: list[Condition], progress: RunProgress) -> None:
        costly, dataset = [each for each in missing if each.perturbation.in_parts], self.settings.dataset.split("test")
        if costly:
            indices = subsample(len(dataset), self.settings.test_images, 0)  # type: ignore[arg-type]
            images, _ = load_batch(dataset, indices[: self.settings.eval_batch_size])
            models = [self.model(seed, regime.id).classifier.to(best_device())]
            for line in cost_lines(costly, models, images, len(indices), len(self.settings.dataset.classes)):
                progress.say(line)

    def _test(self, seed: int, regime: Regime, missing: list[Condition], step: Step) -> None:
        """Test one model; every training is tested on the same images with the same noise."""
        s, dataset, is_base = self.settings, self.settings.dataset.split("test"), regime.id == BASE
        indices, size = subsample(len(dataset), s.test_images, 0), s.eval_batch_size  # type: ignore[arg-type]
        classifier = self.model(seed, regime.id).classifier.to(best_device())
        blocks = {c.id: self.store.blocks(self.store.outcomes(seed, regime.id, c.id), len(indices)) for c in missing}
        advance = Advance(step, sum(-(-(len(indices) - len(each)) // size) for each in blocks.values()))
        for condition in missing:
            kept, path = blocks[condition.id], self.store.outcomes(seed, regime.id, condition.id)
            if condition.attack_setting == TRANSFER:
                source = self.store.outcomes(seed, BASE, f"{condition.name}/{ADAPTIVE}")
                found = Outcomes.read(source)  # also those of the base model, against which the samples were made
                if not is_base:
                    samples = self.store.read_samples(seed, condition.name, source)
                    found = transfer_images(classifier, samples, found, size, kept, advance)
            else:
                keep = is_base and condition.attack_setting == ADAPTIVE
                sampler = KeySampler(indices[len(kept) :], shuffle=False, seed=0)
                batches = ResumableLoader(
                    KeyedDataset(dataset, None, 0),
                    sampler=sampler,
                    batch_size=size,
                    num_workers=s.num_workers,
                    pin_memory=classifier.mean.device.type == "cuda",
                )
                found, images = attack_images(
                    classifier, batches, condition.perturbation, condition.id, kept, advance, keep_images=keep
                )
                if images is not None:
                    of_images = {"images": images, "labels": found.labels, "indices": found.indices}
                    tensors = {name: torch.from_numpy(each) for name, each in of_images.items()}
                    self.store.write_samples(seed, condition.name, tensors)
            found.write(path)
            kept.remove()

    def _check_attacks(self, seed: int, regime: Regime, step: Step) -> AttackCheckResults:
        live = {c.id: c for c in self.conditions if c.attack_setting != TRANSFER}
        outcomes = {name: self.store.read_outcomes(seed, regime.id, name) for name in live}
        clean = next(name for name, each in live.items() if isinstance(each.perturbation, Identity))
        tested, device = outcomes[clean].indices, best_device()
        rows = np.array(subsample(len(tested), self.settings.checks.images, 0), np.int64)
        images, labels = load_batch(self.settings.dataset.split("test"), tested[rows].tolist())
        indices = torch.tensor(tested[rows], device=device)
        checks = AttackChecks(
            self.model(seed, regime.id).classifier.to(device),
            images.to(device),
            labels.to(device),
            lambda name: noise.image_seeds(0, "test", name, 0, indices),
            rows,
            {name: each.perturbation for name, each in live.items() if each.attack_setting == ADAPTIVE},
            outcomes,
            clean,
            len(self.settings.dataset.classes),
        )
        return checks.run(self.settings.checks, step)
