"""One attribution benchmark in one folder: measures every method on every block of images that is missing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.benchmarking.evaluated_images import EvaluatedImages, adapt_to_models, find_images, gallery_places
from robustsigma.benchmarking.function_identity import function_identity
from robustsigma.benchmarking.measure import Arrays, measure, measure_maps
from robustsigma.benchmarking.protocols import PROTOCOLS
from robustsigma.benchmarking.settings import Benchmark, is_control, needs_references, with_references
from robustsigma.benchmarking.store import BenchmarkStore
from robustsigma.benchmarking.stored_maps import StoredMaps
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.loading import load_batch, load_masks, subsample
from robustsigma.engine import noise
from robustsigma.engine.attributors import Attributor, FunctionMethod
from robustsigma.engine.attributors.layer_maps import layer_of
from robustsigma.engine.checks import inspect_classifier
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.device import best_device
from robustsigma.engine.metrics import AttributionMetric, MetricContext
from robustsigma.engine.metrics.sanity_checks import shuffle_parameters
from robustsigma.engine.validation import fail
from robustsigma.evaluation.plan import BASE
from robustsigma.evaluation.resolve_settings import MEAN, STD, resolve_settings
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.settings import Evaluation
from robustsigma.models import ModelCard, model
from robustsigma.runs.blocks import ONCE, BlockFiles
from robustsigma.runs.fingerprint import code_of, describe, files, network
from robustsigma.runs.progress import RunProgress, Step
from robustsigma.runs.ranks import WHOLE, Phases, Ranks

_SHARED = ("grid/", "axes/")  # arrays that are the same for every block
_SHOWN = 8  # images of the gallery
# How an attributor says that it cannot explain this kind of network; one whose numbers are not finite is an error.
_NOT_THIS_NET, _BROKEN = ("net:", "layer:"), "net: expected finite"


class BenchmarkRun:
    """One benchmark in one folder.

    Args:
        settings: what to evaluate.
        out: the folder. What an earlier run of the same settings finished there is not repeated.
        console: where progress is shown.
        ranks: processes that share the blocks of images.
        classifiers: by name, in place of the models of the settings.
    """

    def __init__(
        self,
        settings: Benchmark,
        out: Path,
        console: Console,
        ranks: Ranks | None = None,
        classifiers: Mapping[str, Classifier] | None = None,
    ) -> None:
        self.settings, self.out, self.console = settings, out, console
        self.ranks, self.classifiers = ranks or Ranks(), classifiers
        self._shuffled: dict[str, Classifier] = {}
        self._check_layers()
        self._check_fit()  # before the folder is bound to settings that have to change
        self.store = BenchmarkStore(out, self._bound())

    def _bound(self) -> dict[str, Any]:
        """Return what the folder belongs to."""
        s = self.settings
        bound = {**describe(s), **code_of(s.allow, s), "data": s.dataset.fingerprint()}
        # The networks themselves count: their code may change, and a file may be replaced.
        if self.classifiers is not None:
            found = self.classifiers.items()
            bound["network"] = {name: network(each.net, s.dataset.shape) for name, each in found}
            for key in ("mean", "std"):
                bound[key] = {name: getattr(each, key).flatten().tolist() for name, each in found}
        else:
            plan = s if s.models else self._plan
            bound |= {"mean": describe(plan.mean or MEAN), "std": describe(plan.std or STD)}
            bound["network"] = {name: network(each.net, card.shape) for name, (each, card) in self._loaded.items()}
        for name, method in s.methods.items():
            if isinstance(method, StoredMaps):
                bound.setdefault("maps", {})[name] = {model: files(method.files(model)) for model in self._model_names}
            elif isinstance(method, FunctionMethod):
                bound.setdefault("functions", {})[name] = function_identity(method.function)
        return bound

    @property
    def _model_names(self) -> list[str]:
        return list(self.classifiers or self.settings.models) or [BASE]

    def _check_layers(self) -> None:
        """Raise if no model has a method's layer; if only some have it, the method is left out for the others."""
        found = self.classifiers or {name: classifier for name, (classifier, _) in self._loaded.items()}
        nets = [classifier.net for classifier in found.values()]
        layers = [getattr(method, "layer", None) for method in self.settings.methods.values()]
        for layer in layers if nets else ():
            if layer is not None and not any(layer in dict(net.named_modules()) for net in nets):
                layer_of(nets[0], layer)

    def _check_fit(self) -> None:
        """Raise where the models do not fit the dataset, or no metric does."""
        self.dataset, self.metrics  # noqa: B018  # made here, once

    @cached_property
    def _loaded(self) -> dict[str, tuple[Classifier, ModelCard]]:
        allow = self.settings.allow
        return {name: model(description, allow=allow) for name, description in self.settings.models.items()}

    @cached_property
    def models(self) -> dict[str, Classifier]:
        """The classifiers by name; one is trained if none is given."""
        if self.classifiers is not None:
            return dict(self.classifiers)
        if not self.settings.models:
            return {BASE: self._trained()}
        return {name: classifier.to(best_device()) for name, (classifier, _) in self._loaded.items()}

    @cached_property
    def dataset(self) -> DatasetSpec:
        """The dataset, with the classes and crops of the models."""
        if self.classifiers is not None:
            return self.settings.dataset
        if not self.settings.models:
            return self._plan.dataset
        return adapt_to_models(self.settings.dataset, {name: card for name, (_, card) in self._loaded.items()})

    @cached_property
    def split(self) -> Dataset[Any]:
        """The split whose images are explained."""
        return self.dataset.split(self.settings.split)  # type: ignore[arg-type]

    @cached_property
    def evaluated(self) -> EvaluatedImages:
        """The images that are explained: read from the folder, or chosen and written to it."""
        found = self.store.read_images()
        if found is None:
            found = find_images(self.split, self.models, self.settings.images, self.settings.seed)
            self.store.write_images(found)
        return found

    @cached_property
    def has_masks(self) -> bool:
        """Whether the objects are annotated."""
        return load_masks(self.split, [0]) is not None

    @cached_property
    def metrics(self) -> list[AttributionMetric]:
        """The metrics that the dataset allows; of protocols by name it has to allow each."""
        named = self.settings.protocols if len(self.settings.protocols) < len(PROTOCOLS) else ()  # not "all"
        lacking = [name for name in named if any(each.needs_masks for each in PROTOCOLS[name].metrics)]
        if lacking and not self.has_masks:
            raise fail("protocols", f"a dataset with masks for {lacking[0]!r}", "one without; leave the protocol out")
        found = [metric for metric in self.settings.all_metrics if self.has_masks or not metric.needs_masks]
        if not found:
            raise fail("metrics", "one that needs no masks, since the dataset has none", "none")
        return found

    @cached_property
    def methods(self) -> dict[str, Attributor]:
        """The attributors, with reference images if they need some and have none."""
        found = dict(self.settings.methods)
        lacking = {name: method for name, method in found.items() if needs_references(method)}
        if lacking:
            images = self.references()
            found |= {name: with_references(each, images) for name, each in lacking.items()}
        return found

    def references(self) -> Tensor:
        """Return reference images (R, C, H, W) of the training split, or of this split without the evaluated ones."""
        s = self.settings
        if s.split != "train" and "train" in self.dataset.splits:
            train = self.dataset.split("train")
            return load_batch(train, subsample(len(train), s.references, s.seed))[0]  # type: ignore[arg-type]
        others = sorted(set(range(len(self.split))) - set(self.evaluated.indices))  # type: ignore[arg-type]
        if not others:
            own = self.classifiers is not None
            needing = next(name for name, method in s.methods.items() if needs_references(method))
            told = f"fewer than all images, since {needing!r} compares with others, of which none are left"
            hint = ", or pass references=… (R, C, H, W)" if own else ", or give the dataset a training split"
            got = f"{s.images}, which takes all {len(self.evaluated.indices)}; lower it{hint}"
            raise fail("max_images" if own else "images", told, got)
        return load_batch(self.split, [others[place] for place in subsample(len(others), s.references, s.seed)])[0]

    def load_images(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return images (n, C, H, W) and masks (n, H, W) of the split."""
        masks = load_masks(self.split, indices)
        return load_batch(self.split, indices)[0].numpy(), None if masks is None else masks.numpy()

    @cached_property
    def blocks(self) -> BlockFiles:
        """The scores of each model, by blocks of images."""
        paths = {model: self.store.scores(model) for model in self._model_names}
        return BlockFiles(paths, len(self.evaluated.indices), self.settings.batch_size)

    def run(self, phases: Phases = WHOLE) -> None:
        """Run the phases that a command carries out; finished work is not repeated."""
        if not phases.prepare and self.store.read_images() is None:
            raise fail("images", "the images to explain to be chosen already", f"none; {phases.remedy}")
        evaluated = self.ranks.main_first(lambda: self.evaluated)  # a model is trained for it, if none is given
        count = len(evaluated.indices)
        if phases.measure:
            spans = self.ranks.broadcast(self.blocks.missing(phases.shard))
            dealt = self.ranks.deal(spans)
            with RunProgress(len(dealt) * len(self.blocks), self.console) as progress:
                for start, stop in dealt:
                    places = self.evaluated.indices[start:stop]
                    images, masks = load_batch(self.split, places)[0], load_masks(self.split, places)
                    for model in self.models:
                        with progress.job(f"{model}: images {start + 1} to {stop} of {count}") as step:
                            if not self.blocks[model].has(start, stop):
                                self._measure(model, start, images, masks, step)
            self.ranks.barrier()
            for each in self.blocks.values():
                each.note(spans)
        if phases.report:
            self.blocks.finish(self.ranks, phases.remedy)

    def arrays(self, model: str) -> dict[str, Arrays]:
        """Return what was measured of a finished model, by method; those of the sanity checks for the first images."""
        columns = self.blocks[model].all()
        found: dict[str, Arrays] = {}
        for column, values in columns.items():
            method, _, name = column.removeprefix(ONCE).partition("|")
            found.setdefault(method, {"index": columns["|index"]})[name] = values
        known = [name for name in self.settings.methods if name in found and self.store.left_out(model, name) is None]
        return {name: found[name] for name in known}

    def _measure(self, model: str, start: int, images: Tensor, masks: Tensor | None, step: Step) -> None:
        """Measure every method on a block of images, for one model."""
        s, classifier = self.settings, self.models[model]
        rows, device = slice(start, start + len(images)), classifier.mean.device
        places = self.evaluated.indices[rows]
        images, target = images.to(device), self.evaluated.targets[model][rows].to(device)
        indices = torch.tensor(places, device=device)
        if not start:
            self.store.write_network(model, inspect_classifier(classifier, images, target).flags)
        classifier.checked = True  # the report has the flags
        metric_seeds, seeds = (noise.image_seeds(s.seed, "benchmark", of, 0, indices) for of in ("metrics", "method"))
        context = MetricContext(
            classifier, images, target, masks=None if masks is None else masks.to(device), seed=metric_seeds
        )
        shuffled = self._shuffle(model) if start < s.checked_batches * s.batch_size else None
        found: Arrays = {"|index": indices.cpu().numpy()}
        methods = [name for name in self.methods if self.store.left_out(model, name) is None]
        for done, method in enumerate(methods):
            step(done, len(methods))
            attributor = self.methods[method]
            try:
                if isinstance(attributor, StoredMaps):
                    maps = attributor.load(model, self.split, places, images)
                    checks = ["stability", "randomization", *["max_sensitivity"] * (s.sensitivity_samples > 0)]
                    arrays = measure_maps(context, maps, self.metrics, [] if shuffled is None else checks)
                else:
                    again = s.stability_seeds, s.sensitivity_samples
                    arrays = measure(context, attributor, self.metrics, seeds, shuffled, *again)
            except ValueError as error:
                if not str(error).startswith(_NOT_THIS_NET) or str(error).startswith(_BROKEN):
                    raise
                self.store.leave_out(model, method, str(error))
            else:
                found |= self._columns(method, start, arrays)
        self._check_methods()
        self.blocks[model].add(start, found)

    def _check_methods(self) -> None:
        """Raise where no method that was asked for can explain any model."""
        asked = [name for name, method in self.settings.methods.items() if not is_control(method)]
        reasons = [self.store.left_out(model, name) for name in asked for model in self.models]
        if reasons and None not in reasons:
            raise fail("methods", "one that can explain these models", f"none; of {asked[0]}: {reasons[0]}")

    def _columns(self, method: str, start: int, arrays: Arrays) -> Arrays:
        """Return the columns of a method; of its maps only those of the gallery, unless all are asked for."""
        maps = arrays["map"] if self.settings.keep_maps else arrays.pop("map")
        shown = {place: maps[place - start] for place in self.gallery if start <= place < start + len(maps)}
        once = {name: values for name, values in arrays.items() if name.startswith(_SHARED)}
        once |= {f"map/{place}": values for place, values in shown.items()}
        own = {f"{method}|{name}": values for name, values in arrays.items() if name not in once}
        return own | {f"{ONCE}{method}|{name}": values for name, values in once.items()}

    @cached_property
    def gallery(self) -> list[int]:
        """Places of the images whose maps the report shows."""
        return gallery_places(self.evaluated.labels, _SHOWN)

    def _shuffle(self, model: str) -> Classifier:
        if model not in self._shuffled:
            self._shuffled[model] = shuffle_parameters(self.models[model], self.settings.seed)
            self._shuffled[model].checked = True
        return self._shuffled[model]

    @cached_property
    def _plan(self) -> Evaluation:
        """How a model is trained if none is given: like the base model of an evaluation."""
        s = self.settings
        if s.training.epochs and "train" not in s.dataset.splits:
            told = f"at least one, as {type(s.dataset).__name__} has no training images to train one on"
            raise fail("models", told, "none")
        shared = {name: getattr(s, name) for name in ("dataset", "architecture", "training", "mean", "std")}
        return resolve_settings(Evaluation(**shared, seeds=(s.seed,)))

    def _trained(self) -> Classifier:
        """Return a model trained by the plan; its weights stay in the folder."""
        seed = self.settings.seed
        training = RobustnessRun(self._plan, self.out / "training", self.console)
        if not training.store.has_model(seed, BASE):
            self.console.print("[dim]No model is given: one is trained first.[/dim]")
        training.train(seed, training.regimes[0])
        return training.model(seed, BASE).classifier.eval().to(best_device())
