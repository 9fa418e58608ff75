"""Runs an evaluation: trains what is missing, tests what is missing, and writes the report."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
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
from robustsigma.engine.perturbations import Identity, Mixture, MixtureComponent, Perturbation
from robustsigma.engine.validation import fail
from robustsigma.evaluation.data import MadeImages, MatrixData
from robustsigma.evaluation.diagnosis import AttackCheckResults, AttackChecks
from robustsigma.evaluation.given import resolve_settings
from robustsigma.evaluation.lightning import quiet, quiet_trainer, seeded
from robustsigma.evaluation.outcomes import CellRecorder, Outcomes
from robustsigma.evaluation.parts import EpochKeeper, Parts
from robustsigma.evaluation.progress import BatchProgress, RunProgress, Step
from robustsigma.evaluation.settings import Evaluation, Retraining, Training, describe
from robustsigma.evaluation.store import Store
from robustsigma.lightning import AugmentationStatistics, CatastrophicOverfitting, LitClassifier, OverfittingMonitor
from robustsigma.lightning.augmentation_statistics import AugmentationTotals, augmentation_counts
from robustsigma.lightning.loaders import KeyedDataset
from robustsigma.lightning.safetensors_export import model_card
from robustsigma.lightning.training_perturbation import has_single_step, without_cache
from robustsigma.models.weight_files import first_infinite, fit_state
from robustsigma.processes import Processes
from robustsigma.provenance import code_of

BASE = "base"
ADAPTIVE, TRANSFER = "adaptive", "transfer"


@dataclasses.dataclass(frozen=True)
class Regime:
    """One row of the matrix.

    Attributes:
        id: unique, also the name of its files.
        name: as people call it.
        protocol: "none" for the base model, "retrain" or "on_the_fly".
        perturbation: of its training images, or None for the base model.
    """

    id: str
    name: str
    protocol: str
    perturbation: Perturbation | None


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the matrix.

    Attributes:
        id: unique, also the name of its files.
        name: of the condition.
        reading: "none" where all models see the same images, else "adaptive" or "transfer".
        perturbation: of the test images.
    """

    id: str
    name: str
    reading: str
    perturbation: Perturbation


def regimes(settings: Evaluation) -> list[Regime]:
    """Return the rows."""
    found = [Regime(BASE, BASE, "none", None)]
    for protocol in ("retrain", "on_the_fly"):
        for name, perturbation in getattr(settings.retraining, protocol).items():
            made = without_cache(perturbation) if protocol == "retrain" else perturbation  # each sample is made once
            found.append(Regime(f"{name}/{protocol}", name, protocol, made))
    return found


def columns(settings: Evaluation) -> list[Column]:
    """Return the columns."""
    conditions = {name: without_cache(p) for name, p in settings.conditions.items()}
    attacks = {name: p for name, p in conditions.items() if p.depends_on_model}
    same = [Column(name, name, "none", p) for name, p in conditions.items() if name not in attacks]
    return same + [Column(f"{name}/{r}", name, r, p) for r in (ADAPTIVE, TRANSFER) for name, p in attacks.items()]


def kept(settings: Evaluation, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that a folder is bound to, in plain JSON types.

    Seeds may be added, and a diagnosis keeps its checks itself; what a sweep decides stands in the regimes. The weights
    that the network starts from, the images and labels, and the source of your classes among the settings count too.

    Args:
        settings: of the evaluation, completed.
        allow: dotted paths whose source it is bound to as well.
    """
    found = {key: value for key, value in describe(settings).items() if key not in ("seeds", "checks", "sweep")}
    source, trained = settings.source, not settings.training.epochs
    network = settings.architecture.fingerprint(source.shape, len(source.classes), trained=trained)
    return {**found, "network": network, "data": source.fingerprint(), **code_of(allow, settings)}


class Run:
    """One evaluation in one folder.

    Args:
        settings: what to evaluate, which is completed (see `completed`).
        out: the folder. What an earlier run of the same settings finished there is not done again.
        console: where progress is shown.
        processes: that share the regimes, each of which is trained and tested by one of them.
        allow: dotted paths that a command line allowed: the folder is of their source as well.
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
        self.store = Store(out, kept(self.settings, allow))
        self.regimes, self.columns = regimes(settings), columns(settings)

    def run(self) -> None:
        """Train and test what is missing."""
        self.run_and(None)

    def run_and(self, last: tuple[str, Callable[[Step], object]] | None) -> None:
        """Train and test what is missing, and do one more job.

        Args:
            last: name of a job that the first process does when all else is done, and what it calls; or None.
        """
        checks = self.settings.checks
        jobs = (3 if checks.images else 2) * len(self.regimes) * len(self.settings.each_seed) + (last is not None)
        rows = [(seed, regime) for seed in self.settings.each_seed for regime in self.regimes]
        with quiet(), RunProgress(jobs, self.console, self.processes) as progress:
            for seed, regime in self.processes.share("regimes", rows):
                title = f"seed {seed}, {regime.id.replace('_', ' ')}"
                self.finish_training(seed, regime, title, progress)
                self.finish_tests(seed, regime, title, progress)
                if self.diagnosis(seed, regime) is not None:
                    progress.finish(f"{title}: was checked before")
                elif checks.images:
                    with progress.job(f"{title}: checks of the attacks") as step:
                        found = self._diagnose(seed, regime, step)
                        found.write(self.store.diagnosis(seed, regime.id), checks)
            self.processes.barrier("regimes")
            if last is not None and self.processes.first:
                name, work = last
                with progress.job(name) as step:
                    work(step)

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
        paths = {column.id: self.store.outcomes(seed, regime.id, column.id) for column in self.columns}
        missing = [column for column in self.columns if not paths[column.id].is_file()]
        for path in set(paths.values()) - {paths[column.id] for column in missing}:
            self.store.parts(path).remove()  # of a run that was killed before it could
        if not missing:
            progress.finish(f"{title}: was tested before")
        else:
            if regime.id != BASE:  # against which the samples of the transfer columns are made
                names = [f"{c.name}/{ADAPTIVE}" for c in missing if c.reading == TRANSFER]
                made = [self.store.outcomes(seed, BASE, name) for name in names]
                self.processes.wait(lambda: all(path.is_file() for path in made))
            with progress.job(f"{title}: {len(missing)} conditions") as step:
                self._test(seed, regime, missing, step)

    def diagnosis(self, seed: int, regime: Regime) -> AttackCheckResults | None:
        """Return the checks of one model, or None if they were not made, or others were."""
        checks = self.settings.checks
        return AttackCheckResults.read(self.store.diagnosis(seed, regime.id), checks) if checks.images else None

    def train(self, seed: int, regime: Regime) -> None:
        """Train one model, if it is missing; a regime needs its base model."""
        if not self.store.has_model(seed, regime.id):
            with quiet():
                self._train(seed, regime, lambda done, total: None)

    def data(self, seed: int, batch_size: int, **kwargs: Any) -> MatrixData:
        """Return a data module; its seed decides order and noise."""
        s = self.settings
        return MatrixData(s.source, batch_size=batch_size, num_workers=s.num_workers, seed=seed, **kwargs)

    def model(self, seed: int, regime: str, training: Training | Retraining | None = None) -> LitClassifier:
        """Return a model: trained if its weights are there, else fresh."""
        s = self.settings
        source = s.source
        with seeded(seed, "initial weights"):
            net = s.architecture.build(source.shape[0], len(source.classes))
        optimizer: Any = torch.optim.AdamW
        if training is not None:
            optimizer = partial(torch.optim.AdamW, lr=training.lr, weight_decay=training.weight_decay)
        assert s.mean is not None
        assert s.std is not None
        model = LitClassifier(net, mean=s.mean, std=s.std, optimizer=optimizer)
        model.classifier.checked = True  # the report flags what speaks against the network
        if self.store.has_model(seed, regime):
            self.store.load_weights(seed, regime, model.classifier.net)
        return model

    def _train(self, seed: int, regime: Regime, step: Step) -> None:
        start = time.perf_counter()
        first, again = self.settings.training, self.settings.retraining
        plan = first if regime.perturbation is None else again
        model = self.model(seed, BASE, plan)
        totals = AugmentationTotals()
        special: dict[str, Any] = {}
        if regime.perturbation is not None and regime.protocol == "retrain":
            special["added"], totals = self._samples(seed, regime, model.classifier)
        elif regime.perturbation is not None:
            special["train_perturbation"] = Mixture([MixtureComponent(regime.perturbation, again.share)])
        data = self.data(seed, plan.batch_size, augment=first.augment, **special)
        metrics: dict[str, float] = {}
        monitors: list[OverfittingMonitor] = []
        if plan.epochs:
            statistics, kept = AugmentationStatistics(), self.store.checkpoint(seed, regime.id)
            if data.train_perturbation is not None and has_single_step(data.train_perturbation):
                monitors.append(OverfittingMonitor())
            # The keeper is last, as it keeps what the others have seen.
            callbacks = [*monitors, statistics, BatchProgress(step), EpochKeeper(kept)]
            with seeded(seed, regime.id), warnings.catch_warnings():  # dropout
                warnings.simplefilter("ignore", CatastrophicOverfitting)  # the report tells of it
                trainer = quiet_trainer(callbacks, max_epochs=plan.epochs, limit_val_batches=0)
                trainer.fit(model, data, ckpt_path=kept if kept.is_file() else None)
            totals += statistics.totals
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        else:
            self._check_whole(model.classifier.net)
        self._check_finite(seed, regime, model.classifier.net, plan)
        notes = {
            "seconds": time.perf_counter() - start,
            "augmentation": dataclasses.asdict(totals),
            "metrics": metrics,
            "overfitting": [dataclasses.asdict(check) for monitor in monitors for check in monitor.checks],
        }
        self.store.write_model(seed, regime.id, model.classifier.net, model_card(model.classifier, data), notes)
        if regime.protocol == "retrain":
            self._sample_parts(seed, regime).remove()

    def _sample_parts(self, seed: int, regime: Regime) -> Parts:
        return self.store.parts(self.store.samples(seed, f"train.{regime.id}"))

    def _check_finite(self, seed: int, regime: Regime, net: nn.Module, plan: Training | Retraining) -> None:
        """Refuse weights that no later step takes, before they are kept; nothing of their training stays."""
        infinite = first_infinite(net.state_dict())
        if infinite is None:
            return
        if not plan.epochs:
            raise fail("architecture", "a network of finite weights", f"NaN or infinity in {infinite}")
        self.store.checkpoint(seed, regime.id).unlink(missing_ok=True)
        if regime.protocol == "retrain":
            self._sample_parts(seed, regime).remove()
        rate = "training.lr" if regime.perturbation is None else "retraining.lr"
        told = (
            f"NaN or infinity in {infinite}: it diverged; nothing of it is kept; try a smaller {rate} in a new folder"
        )
        raise fail(f"training of {regime.id} (seed {seed})", "finite weights", told)

    def _check_whole(self, net: nn.Module) -> None:
        """Refuse a network that nobody trains and whose last layer is not the file's."""
        architecture = self.settings.architecture
        if architecture.weights is not None:
            fit_state(net, *architecture.state())

    def _samples(self, seed: int, regime: Regime, classifier: Classifier) -> tuple[MadeImages, AugmentationTotals]:
        """Return training images perturbed against the base model: the same images in every regime."""
        assert regime.perturbation is not None
        dataset = self.settings.source.split("train")
        start = time.perf_counter()
        indices = subsample(len(dataset), self.settings.retraining.samples, seed)  # type: ignore[arg-type]
        device = best_device()
        classifier.to(device)
        keyed, parts = KeyedDataset(dataset, None, seed), self._sample_parts(seed, regime)
        size = self.settings.eval_batch_size
        for at in range(len(parts), len(indices), size):
            batch = keyed.__getitems__(indices[at : at + size])
            x, y = batch.images.to(device), batch.labels.to(device)
            seeds = noise.image_seeds(seed, "train", regime.name, 0, batch.indices.to(device))
            made = regime.perturbation(classifier, x, y, seed=seeds, return_info=True)
            rows = {"images": made.images, "labels": y, "counts": augmentation_counts(made, x)}
            parts.add({key: value.cpu().numpy() for key, value in rows.items()})
        rows = {key: torch.from_numpy(value) for key, value in parts.all().items()}
        totals = AugmentationTotals(*rows["counts"].sum(0).tolist()) + AugmentationTotals(
            seconds=time.perf_counter() - start
        )
        return MadeImages(rows["images"], rows["labels"]), totals

    def _test(self, seed: int, regime: Regime, missing: list[Column], step: Step) -> None:
        # A transfer column of the base model is its adaptive one: the samples were made against it.
        copied = [c for c in missing if c.reading == TRANSFER and regime.id == BASE]
        tested = {c.id: c for c in missing if c not in copied}
        keep = [c.id for c in tested.values() if c.reading == ADAPTIVE and regime.id == BASE]

        def finish(name: str, found: Outcomes, images: torch.Tensor | None) -> None:
            if images is not None:
                what = {"images": images, "labels": torch.tensor(found.labels), "indices": torch.tensor(found.indices)}
                self.store.write_samples(seed, tested[name].name, what)
            if tested[name].reading == TRANSFER:
                found = self._as_made(seed, tested[name], found)
            found.write(self.store.outcomes(seed, regime.id, name))

        parts = {name: self.store.parts(self.store.outcomes(seed, regime.id, name)) for name in tested}
        recorder = CellRecorder(parts, keep, finish)
        self._test_rest(seed, regime, list(tested.values()), recorder, step)
        for column in copied:
            found = self.store.read_outcomes(seed, BASE, f"{column.name}/{ADAPTIVE}")
            found.write(self.store.outcomes(seed, BASE, column.id))

    def _test_rest(self, seed: int, regime: Regime, columns: list[Column], recorder: CellRecorder, step: Step) -> None:
        """Test one model on the images that are not done."""
        most, done = self.settings.test_images, {c.id: len(recorder.parts[c.id]) for c in columns}
        whole = len(subsample(len(self.settings.source.split("test")), most, 0))  # type: ignore[arg-type]
        for column in columns:
            if done[column.id] == whole:  # it was interrupted after the last image
                recorder.hand_over(column.id)
        left = [column for column in columns if done[column.id] < whole]
        if not left:
            return
        data = self.data(
            0,  # every training is tested on the same images with the same noise
            self.settings.eval_batch_size,
            conditions={c.id: c.perturbation for c in left if c.reading != TRANSFER},
            made={c.id: self._made(seed, c.name) for c in left if c.reading == TRANSFER},
            done=done,
            limits=None if most is None else {"test": most},
        )
        trainer = quiet_trainer([recorder, BatchProgress(step)])
        trainer.test(self.model(seed, regime.id), datamodule=data, verbose=False)

    def _diagnose(self, seed: int, regime: Regime, step: Step) -> AttackCheckResults:
        live = {c.id: c for c in self.columns if c.reading != TRANSFER}
        outcomes = {name: self.store.read_outcomes(seed, regime.id, name) for name in live}
        clean = next(name for name, column in live.items() if isinstance(column.perturbation, Identity))
        tested = outcomes[clean].indices
        rows = np.array(subsample(len(tested), self.settings.checks.images, 0), np.int64)
        device = best_device()
        x, y = load_batch(self.settings.source.split("test"), tested[rows].tolist())
        examination = AttackChecks(
            self.model(seed, regime.id).classifier.to(device),
            x.to(device),
            y.to(device),
            torch.tensor(tested[rows], device=device),
            rows,
            {name: column.perturbation for name, column in live.items() if column.reading == ADAPTIVE},
            outcomes,
            clean,
            len(self.settings.source.classes),
        )
        return examination.run(self.settings.checks, step)

    def _made(self, seed: int, condition: str) -> MadeImages:
        made_with = self.store.outcomes(seed, BASE, f"{condition}/{ADAPTIVE}")
        tensors = self.store.read_samples(seed, condition, made_with)
        return MadeImages(tensors["images"], tensors["labels"], tensors["indices"])

    def _as_made(self, seed: int, column: Column, tested: Outcomes) -> Outcomes:
        """Return a transfer column's outcomes: how its samples were made is known from the base model's."""
        base = self.store.read_outcomes(seed, BASE, f"{column.name}/{ADAPTIVE}")
        if not np.array_equal(base.indices, tested.indices):
            raise RuntimeError(f"{column.id}: the samples of seed {seed} are not of the images that are tested")
        how = ("searched", "converged", "steps", "rmse", "linf", "ssim")
        return dataclasses.replace(tested, **{name: getattr(base, name) for name in how})
