"""Runs a benchmark: judges every method on every batch that is not done yet."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.benchmark.images import Judged, adapt_to_models, has_masks, judged
from robustsigma.benchmark.judge import Task, judge
from robustsigma.benchmark.settings import Benchmark, compares, with_references
from robustsigma.benchmark.store import Store
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.loading import load_batch, load_masks, subsample
from robustsigma.engine import noise
from robustsigma.engine.attributors import Attributor
from robustsigma.engine.checks import check_classifier
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import best_device
from robustsigma.engine.metrics import AttributionMetric, MetricContext
from robustsigma.engine.metrics.sanity_checks import shuffle_parameters
from robustsigma.engine.validation import fail
from robustsigma.evaluation.given import MEAN, STD, resolve_settings
from robustsigma.evaluation.progress import RunProgress, Step
from robustsigma.evaluation.run import BASE
from robustsigma.evaluation.run import Run as Training
from robustsigma.evaluation.settings import Evaluation, describe
from robustsigma.fingerprint import network
from robustsigma.models import ModelCard, model
from robustsigma.processes import Processes
from robustsigma.provenance import code_of

# How an attributor says that it cannot explain this kind of network; one whose numbers are not finite is an error.
_NOT_THIS_NET, _BROKEN = "net:", "net: expected finite"


class Run:
    """One benchmark in one folder.

    Args:
        settings: what to judge.
        out: the folder. What an earlier run of the same settings finished there is not done again.
        console: where progress is shown.
        processes: that share the batches.
    """

    def __init__(self, settings: Benchmark, out: Path, console: Console, processes: Processes | None = None) -> None:
        self.settings, self.out, self.console = settings, out, console
        self.processes = processes or Processes()
        self._without_weights: dict[str, Classifier] = {}
        # Code may make others tomorrow, and a file may be replaced.
        networks = {name: network(classifier.net, card.shape) for name, (classifier, card) in self._loaded.items()}
        plan = settings if settings.models else self._plan
        # Models that are given have no use for them; a folder of an earlier version has the defaults there.
        statistics = {"mean": describe(plan.mean or MEAN), "std": describe(plan.std or STD)}
        bound = {**describe(settings), **statistics, **code_of(settings.allow, settings)}
        bound |= {"network": networks, "data": settings.source.fingerprint()}
        self.store = Store(out, bound)

    @cached_property
    def models(self) -> dict[str, Classifier]:
        """The classifiers by name; one is trained if none is given."""
        if not self.settings.models:
            return {BASE: self._trained()}
        return {name: classifier.to(best_device()) for name, (classifier, _) in self._loaded.items()}

    @cached_property
    def source(self) -> DatasetSpec:
        """The dataset, as the models take it."""
        if not self.settings.models:
            return self._plan.source
        return adapt_to_models(self.settings.source, {name: card for name, (_, card) in self._loaded.items()})

    @cached_property
    def dataset(self) -> Dataset[Any]:
        """The split that is judged."""
        return self.source.split(self.settings.split)  # type: ignore[arg-type]

    @cached_property
    def _loaded(self) -> dict[str, tuple[Classifier, ModelCard]]:
        s = self.settings
        return {name: model(description, allow=s.allow) for name, description in s.models.items()}

    @cached_property
    def judged(self) -> Judged:
        """The images that are judged: those that the folder names, else they are found and named there."""
        found = self.store.read_judged()
        if found is None:
            found = judged(self.dataset, self.models, self.settings.images, self.settings.seed)
            self.store.write_judged(found)
        return found

    @cached_property
    def masks(self) -> bool:
        """Whether the objects are marked."""
        return has_masks(self.dataset)

    @cached_property
    def metrics(self) -> list[AttributionMetric]:
        """The metrics that the dataset allows."""
        found = [metric for metric in self.settings.metrics if self.masks or not metric.needs_masks]
        if not found:
            raise fail("metrics", "one that needs no masks, since the dataset has none", "none")
        return found

    @cached_property
    def methods(self) -> dict[str, Attributor]:
        """The attributors, with references where they compare with other images and name none."""
        s = self.settings
        if not any(map(compares, s.methods.values())):
            return dict(s.methods)
        images = self._references()
        return {name: with_references(method, images) for name, method in s.methods.items()}

    def _references(self) -> Tensor:
        """Return images (R, C, H, W) of the training split, or such as are not judged where that is none or judged."""
        s = self.settings
        if s.split != "train" and "train" in self.source.splits:
            train = self.source.split("train")
            return load_batch(train, subsample(len(train), s.references, s.seed))[0]  # type: ignore[arg-type]
        judged = set(self.judged.indices)
        others = [index for index in range(len(self.dataset)) if index not in judged]  # type: ignore[arg-type]
        if not others:
            told = "fewer than all images of a dataset without a training split, since some methods compare with others"
            raise fail("images", told, len(judged))
        return load_batch(self.dataset, [others[place] for place in subsample(len(others), s.references, s.seed)])[0]

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self.judged.indices) // self.settings.batch_size)

    def pictures(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return images (n, C, H, W) and masks (n, H, W) of the judged split."""
        masks = load_masks(self.dataset, indices)
        return load_batch(self.dataset, indices)[0].numpy(), None if masks is None else masks.numpy()

    def run(self) -> None:
        """Judge what is missing."""
        jobs = [(batch, model) for batch in range(self.batches) for model in self.models]
        with RunProgress(len(jobs), self.console, self.processes) as progress:
            for batch, model in self.processes.share("batches", jobs):
                missing = [name for name in self.methods if not self._done(model, name, batch)]
                start = batch * self.settings.batch_size
                last = min(start + self.settings.batch_size, len(self.judged.indices))
                title = f"{model}: images {start + 1} to {last} of {len(self.judged.indices)}"
                if not missing:
                    progress.finish(f"{title}: were judged before")
                    continue
                with progress.job(title) as step:
                    self._judge(model, batch, missing, step)
            self.processes.barrier("batches")

    def _done(self, model: str, method: str, batch: int) -> bool:
        return self.store.has(model, method, batch) or self.store.left_out(model, method) is not None

    def _judge(self, model: str, batch: int, methods: list[str], step: Step) -> None:
        s, classifier = self.settings, self.models[model]
        size = s.batch_size
        rows = self.judged.indices[batch * size : (batch + 1) * size]
        x, _ = load_batch(self.dataset, rows)
        y = self.judged.targets[model][batch * size : (batch + 1) * size]
        masks, device = load_masks(self.dataset, rows), classifier.mean.device
        if self.store.read_network(model) is None:
            self.store.write_network(model, check_classifier(classifier, x.to(device), y.to(device)))
        classifier.checked = True  # the report says it
        indices = torch.tensor(rows, device=device)
        seeds = noise.image_seeds(s.seed, "benchmark", "metrics", 0, indices)
        subject = MetricContext(
            classifier, x.to(device), y.to(device), masks=None if masks is None else masks.to(device), seed=seeds
        )
        shuffled = self._shuffled(model) if batch < s.checked_batches else None
        for place, method in enumerate(methods):
            step(place, len(methods))
            self._method(model, method, batch, subject, indices, shuffled)

    def _method(
        self, model: str, method: str, batch: int, subject: MetricContext, indices: Tensor, shuffled: Classifier | None
    ) -> None:
        seeds = noise.image_seeds(self.settings.seed, "benchmark", "method", 0, indices)
        task = Task(subject, self.methods[method], seeds, shuffled, self.settings.stability_seeds)
        try:
            arrays = judge(task, self.metrics)
        except ValueError as error:
            if not str(error).startswith(_NOT_THIS_NET) or str(error).startswith(_BROKEN):
                raise
            self.store.leave_out(model, method, str(error))
            return
        arrays["index"] = indices.cpu().numpy()
        self.store.write(model, method, batch, arrays)

    def _shuffled(self, model: str) -> Classifier:
        if model not in self._without_weights:
            self._without_weights[model] = shuffle_parameters(self.models[model], self.settings.seed)
            self._without_weights[model].checked = True
        return self._without_weights[model]

    @cached_property
    def _plan(self) -> Evaluation:
        """How a model is trained where none is given: as the base model of an evaluation is."""
        s = self.settings
        if s.training.epochs and "train" not in s.source.splits:
            told = f"at least one, as {type(s.source).__name__} has no training images to train one on"
            raise fail("models", told, "none")
        shared = {name: getattr(s, name) for name in ("source", "architecture", "training", "mean", "std")}
        return resolve_settings(Evaluation(**shared, seeds=(s.seed,)))

    def _trained(self) -> Classifier:
        """Return a model trained by the plan; its weights stay in the folder."""
        s = self.settings
        training = Training(self._plan, self.out / "training", self.console)
        if not training.store.has_model(s.seed, BASE):
            self.console.print("[dim]No model is given: one is trained first.[/dim]")
        training.train(s.seed, training.regimes[0])
        return training.model(s.seed, BASE).classifier.eval().to(best_device())
