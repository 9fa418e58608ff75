"""`benchmark`: attribution methods of a user or of this package, on models and data that a user has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from robustsigma.benchmarking.attribution_report import AttributionReport
from robustsigma.benchmarking.function_identity import check_source
from robustsigma.benchmarking.given_data import GivenDataset, GivenSplit, Masks
from robustsigma.benchmarking.pipeline import finish
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.settings import Benchmark, needs_references, with_references
from robustsigma.benchmarking.stored_maps import StoredMaps
from robustsigma.data.loading import subsample
from robustsigma.engine import validation
from robustsigma.engine.attributors import (
    Attributor,
    FunctionMethod,
    GuidedIntegratedGradients,
    IntegratedGradients,
    Sigma,
)
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.metrics import (
    AttributionMetric,
    CompletenessGap,
    Cost,
    InsertionDeletion,
    Localization,
    PerformanceInformation,
)
from robustsigma.engine.network_state import deterministic
from robustsigma.engine.validation import fail
from robustsigma.evaluation.given_images import given_images
from robustsigma.evaluation.given_models import GivenModels, Normalized, given_models, on_device
from robustsigma.lightning.batch_images import Place
from robustsigma.runs.provenance import Provenance
from robustsigma.runs.ranks import Ranks

Method = Attributor | Callable[..., Any]
_BLOCK = 128  # images read at once
_CURVE = 32  # points of the default curves at most


def default_methods() -> dict[str, Attributor]:
    """Return the methods of `benchmark` where none are named: SIGMA, IG and Guided IG."""
    return {
        "SIGMA": Sigma(alpha=0.01, beta=0.1, objective="logit", max_steps=100, paths=3),
        "IG": IntegratedGradients(),
        "Guided IG": GuidedIntegratedGradients(),
    }


def default_metrics(shape: Sequence[int]) -> list[AttributionMetric]:
    """Return the metrics of `benchmark` where none are named, for images (C, H, W)."""
    channels, height, width = shape
    step = max(width, -(-height * width // _CURVE))
    found: list[AttributionMetric] = [InsertionDeletion(step=step)]
    if channels in (1, 3) and min(height, width) > 1:
        found.append(PerformanceInformation())
    return [*found, Localization(), CompletenessGap(), Cost()]


@deterministic()
def benchmark(
    model: Any,
    data: Any,
    methods: Mapping[str, Method] | None = None,
    *,
    metrics: Sequence[AttributionMetric] | None = None,
    protocols: str | Sequence[str] = (),
    masks: Masks = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalized: Normalized = False,
    images: Place = 0,
    labels: Place = 1,
    max_images: int = 100,
    references: Any = 20,
    batch_size: int = 16,
    checked: int = 32,
    seed: int = 0,
    out: str | Path | None = None,
    keep_maps: bool = False,
    device: str | torch.device | None = None,
    distributed: bool = True,
    progress: bool = True,
) -> AttributionReport:
    """Compare attribution methods by metrics, on images that every model classifies correctly.

    Models are used in eval mode and come back as they were: modes, flags, hooks, gradients and device. Each image has
    a seed of its own, from `seed` and its index, so the result does not depend on the batch size. The plain gradient
    and random values are always among the methods: if a metric cannot distinguish a method from random values, its
    score is meaningless.

    Args:
        model: as of `robustsigma.evaluate`: an `nn.Module`, a `Classifier`, a LightningModule, the pair that
            `robustsigma.models.load_model` returns, a name such as "timm:resnet18", or a mapping from names to any of
            them.
        data: as of `robustsigma.evaluate`: a `Dataset` of (image, label) or (image, label, mask), a `DataLoader`, a
            tuple of tensors (images, labels) or (images, labels, masks), a LightningDataModule or a `DatasetSpec`. Of
            data that cannot be asked for an image by its index, the first `4 * max_images` are read. Masks, several
            correct labels and `StoredMaps` belong to indices of a dataset: with them, a loader whose sampler draws or
            selects images is refused; pass the dataset, or a `torch.utils.data.Subset` of it.
        methods: by name, any of: an attributor of this package, such as `Sigma()`; `CaptumMethod`, any method of
            captum; a function `(model, images, target) -> maps`, see `FunctionMethod`; `StoredMaps`, maps made
            elsewhere. None is SIGMA, integrated gradients and Guided IG.
        metrics: what to measure. Those that compare with masks are left out where there are none. None is insertion
            and deletion, SIC and AIC, localization, completeness and cost; beside protocols, localization and cost.
        protocols: names of published protocols that score the same maps, or "all", which leaves out those that need
            masks where there are none; the report says which orders of methods hold under all of them. See
            `robustsigma.benchmarking.protocol`.
        masks: masks of the object in each image, for localization: arrays (N, H, W), a dataset of masks, a function of
            the image's index, or the place of the mask in an item. None finds the masks of data that have them. A mask
            is bool, in [0, 1], or uint8 of 0 and 255 with at most soft edges; of indices of classes pass mask == class.
        mean: that the network's images are normalized with; None if it takes pixels in [0, 1], or is a `Classifier`.
        std: likewise.
        normalized: whether the images of the data are normalized already, as of `robustsigma.evaluate`.
        images: where a batch holds its images: an index, a key, an attribute, or a function of the batch.
        labels: likewise.
        max_images: images to explain.
        references: images that methods compare with, such as Expected Gradients or captum's GradientShap: a tensor
            (R, C, H, W) in [0, 1], or a number of images of the data that are not evaluated.
        batch_size: images explained at once, and lost at most by an interrupt.
        checked: images on which methods run again, rounded up to whole batches: with other seeds, and on a network
            with shuffled weights. 0 leaves both checks out.
        seed: seed of the choice of images, of methods and of metrics.
        out: folder of `report.html`, `results.json` and `values.csv`, or None to write nothing. The folder
            is bound to the weights, the data and the methods, functions by their source: the same call resumes an
            interrupted one.
        keep_maps: whether the folder keeps the map of every image, not only those that the report shows.
        device: where to compute; None is where each model is.
        distributed: whether the processes that a launcher such as torchrun has started share the images, if there are
            several. All of them have to make the same call, and all get the report. False computes everything here.
        progress: whether to show the progress on standard error.

    Raises:
        ValueError: an argument that cannot be used, no image that all models classify correctly, or a folder of another
            benchmark.

    Example:
        >>> methods = {"SIGMA": Sigma(), "Grad-CAM": CaptumMethod("LayerGradCam", layer="layer4"), "mine": function}
        >>> report = robustsigma.benchmark(net, test_set, methods, mean=(0.5,), std=(0.25,))
        >>> print(report)
    """
    for name, value, low in (("max_images", max_images, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        validation.integer(name, value, low)
    chosen = {name: _attributor(name, each) for name, each in _named(methods).items()}
    for name, method in chosen.items() if out is not None else ():
        if isinstance(method, FunctionMethod):
            check_source(f"methods[{name!r}]", method.function)
    provenance, models = Provenance(None), given_models(model, mean, std, normalized)
    validation.boolean("distributed", distributed)
    ranks = Ranks.join(distributed)
    if isinstance(data, (tuple, list)) and len(data) == 3 and all(hasattr(part, "ndim") for part in data):
        data, masks = tuple(data[:2]), data[2] if masks is None else masks
    with ExitStack() as stack:
        folder = stack.enter_context(ranks.folder(out))
        stack.enter_context(temporary_seed(seed % 2**32))
        stack.enter_context(on_device(models.classifiers, device))
        given = given_images(data, models, (images, labels), None, _BLOCK, 0, seed)
        given.check_ranks(ranks)
        split = GivenSplit(given, masks, 4 * max_images)
        if any(isinstance(method, StoredMaps) for method in chosen.values()):
            split.check_order()
        dataset = GivenDataset(split, models.classes(split[0][0][None], given.classes))
        if not isinstance(references, int):
            images_of = _references(references, models, dataset.shape, (images, labels), seed)
            chosen = {name: with_references(m, images_of) if needs_references(m) else m for name, m in chosen.items()}
        if metrics is None:
            metrics = [Localization(), Cost()] if protocols else default_metrics(dataset.shape)
        settings = Benchmark(
            dataset=dataset,
            methods=chosen,
            metrics=tuple(metrics),
            protocols=protocols,
            images=max_images,
            checked=checked,
            references=references if isinstance(references, int) else 1,
            batch_size=batch_size,
            keep_maps=keep_maps,
            seed=seed,
        )
        console = Console(stderr=True, quiet=not (progress and ranks.is_main))
        run = ranks.main_first(lambda: BenchmarkRun(settings, folder, console, ranks, models.classifiers))
        run.run()
        return finish(run, provenance, None if out is None else folder)


def _named(methods: Any) -> Mapping[str, Method]:
    if methods is None:
        return default_methods()
    if not isinstance(methods, Mapping):
        hint = "such as {'IG': IntegratedGradients()}"
        raise fail("methods", f"a mapping from names to methods, {hint}", type(methods).__name__)
    return dict(methods)


def _attributor(name: str, method: Any) -> Attributor:
    if isinstance(method, Attributor):
        return method
    if isinstance(method, type) or not callable(method):
        got = f"the class {method.__name__}, not an instance" if isinstance(method, type) else repr(method)[:80]
        expected = "an attributor, a CaptumMethod, a StoredMaps, or a function (model, images, target) -> maps"
        raise fail(f"methods[{name!r}]", expected, got)
    try:
        takes: inspect.Signature | None = inspect.signature(method)
    except (TypeError, ValueError):  # a function of C may have none
        takes = None
    try:
        if takes is not None:
            takes.bind(None, None, None)
    except TypeError as error:
        expected = "a function (model, images, target) -> maps"
        raise fail(f"methods[{name!r}]", expected, f"a function {takes}") from error
    return FunctionMethod(method)


def _references(
    given: Any, models: GivenModels, shape: Sequence[int], places: tuple[Place, Place], seed: int
) -> Tensor:
    """Return images that methods compare with."""
    if not isinstance(given, Tensor):
        source = given_images(given, models, places, None, _BLOCK, 0, seed)
        rows = range(20) if source.count is None else subsample(source.count, 20, seed)
        given = source.load(list(rows))[0]
    if given.ndim != 4 or tuple(given.shape[1:]) != tuple(shape):
        raise fail("references", f"images (R, {', '.join(map(str, shape))})", f"shape {tuple(given.shape)}")
    validation.images(given, Classifier.bounds)
    return given
