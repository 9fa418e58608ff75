"""What a benchmark is: images, models, methods and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from robustsigma.benchmarking.protocols import protocol, protocol_names
from robustsigma.data.baggage import Baggage
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.engine import validation
from robustsigma.engine.attributors import Attributor, CaptumMethod, Gradient, IntegratedGradients, RandomAttribution
from robustsigma.engine.metrics import AttributionMetric
from robustsigma.evaluation.settings import Training
from robustsigma.models import Architecture, Pretrained

RANDOM, GRADIENT = "random", "gradient"


@dataclass(frozen=True)
class Benchmark(validation.Settings):
    """Settings of an attribution benchmark: every method by every metric, on one or more models.

    Methods are evaluated on images that every model classifies correctly, so the explained class is the object's.

    Args:
        dataset: the dataset. Metrics that need masks are left out where it has none.
        split: split of the dataset, "train", "val" or "test".
        models: by name, the .safetensors file of a model trained here, "torchvision:NAME", or the description of a
            network that was trained elsewhere. Without any, one is trained: `architecture`, `training`, `mean` and
            `std`. All models see the same pixels: those of a dataset that says how its images are resized and cropped,
            else as the models want it, who must then agree.
        allow: dotted paths that the files of models may name as their networks, beside robustsigma's and torchvision's.
        methods: attributor by name. The controls are always among them: the plain gradient and random values are
            added where no method is one. Methods that compare with other images and name none are given `references`.
        metrics: metrics that the methods are evaluated by. May be empty if there are protocols.
        protocols: names of published protocols that score the same maps, beside `metrics`: a list, names with commas
            between them, or "all", which leaves out those that need masks where there are none; see
            `robustsigma.benchmarking.protocol`.
        protocol_step: pixels that the protocols' curves replace at a time; None is theirs, the width of the image. With
            more, a benchmark of large images takes hours instead of days, and the report says so.
        images: number of images, drawn by the seed.
        checked: number of these images, rounded up to whole batches, on which methods run again: with other seeds, and
            on a network whose parameters were shuffled. 0 leaves both out.
        stability_seeds: number of further runs of a method that uses random numbers, each with another seed.
        sensitivity_samples: number of noisy copies of each checked image, on which every method runs again to measure
            its max-sensitivity. 0 leaves it out.
        references: images of the training split for methods that compare with some. Where there is none, or it is
            the one that is evaluated, images that are not evaluated.
        batch_size: images explained at once, and lost at most by an interrupt.
        keep_maps: whether to keep the map of every image, not only those that the report shows.
        seed: seed of all random draws.
        architecture: architecture of a model trained here.
        training: how a model is trained here.
        mean: per channel, of its normalization; None as in an `Evaluation`.
        std: the same.

    Example:
        >>> run_benchmark(Benchmark(), "runs/benchmark")  # doctest: +SKIP
    """

    dataset: DatasetSpec = field(default_factory=Baggage)
    split: str = "test"
    models: Mapping[str, str | Pretrained] = field(default_factory=dict)
    methods: Mapping[str, Attributor] = field(default_factory=lambda: {"IG": IntegratedGradients()})
    metrics: Sequence[AttributionMetric] = ()
    protocols: str | Sequence[str] = ()
    protocol_step: int | None = None
    images: int = 100
    checked: int = 32
    stability_seeds: int = 1
    sensitivity_samples: int = 0
    references: int = 20
    batch_size: int = 16
    keep_maps: bool = False
    seed: int = 0
    allow: Sequence[str] = ()
    architecture: Architecture = field(default_factory=Architecture)
    training: Training = field(default_factory=Training)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        DatasetSpec.check_split(self.split)
        validation.instance("dataset", self.dataset, DatasetSpec)
        validation.several("metrics", self.metrics)
        for metric in self.metrics:
            validation.instance("metrics", metric, AttributionMetric)
        for what, names in (("models", self.models), ("methods", self.methods)):
            validation.mapping(what, names)
            check_names(what, names)
        models: Mapping[str, object] = self.models
        for name, model in models.items():
            if not isinstance(model, (str, Pretrained)):
                expected = "a .safetensors file, as save_model writes it, the name of a network, or a Pretrained"
                raise validation.fail(f"models.{name}", expected, type(model).__name__)
        for name, method in self.methods.items():
            validation.instance(f"methods.{name}", method, Attributor)
        object.__setattr__(self, "protocols", protocol_names(self.protocols))
        if self.protocol_step is not None:
            validation.integer("protocol_step", self.protocol_step, 1)
        if not self.all_metrics:
            raise validation.fail("metrics", "at least one, or a protocol", "none")
        taken: set[str] = set()
        for quantity in (quantity for metric in self.all_metrics for quantity in metric.quantities):
            if quantity.name in taken:
                raise validation.fail("metrics", "each quantity once", f"{quantity.name} twice")
            taken.add(quantity.name)
        for name in ("images", "stability_seeds", "references", "batch_size"):
            validation.integer(name, getattr(self, name), 1)
        for name in ("checked", "sensitivity_samples"):
            validation.integer(name, getattr(self, name), 0)
        validation.integer("seed", self.seed, 0)
        validation.boolean("keep_maps", self.keep_maps)
        object.__setattr__(self, "methods", _with_controls(self.methods))
        validation.distinct("models", self.models)
        validation.distinct("methods", self.methods)

    @property
    def all_metrics(self) -> tuple[AttributionMetric, ...]:
        """The metrics and those of the protocols."""
        return (*self.metrics, *(each for name in self.protocols for each in protocol(name, self.protocol_step)))

    @property
    def checked_batches(self) -> int:
        """Batches on which methods run again."""
        return -(-self.checked // self.batch_size)


def check_names(what: str, names: Iterable[str]) -> None:
    """Raise unless names can be those of files on any system."""
    for name in names:
        if not re.fullmatch(r"\w([\w .,+()=-]*[\w)+])?", name):
            expected = "letters, digits, spaces and any of - _ . , + = ( )"
            raise validation.fail(f"name among {what}", expected, repr(name))


def _with_controls(methods: Mapping[str, Attributor]) -> dict[str, Attributor]:
    found = dict(methods)
    for name, kind in ((GRADIENT, Gradient), (RANDOM, RandomAttribution)):
        if not any(type(method) is kind for method in found.values()):
            if name in found:
                raise validation.fail("methods", f"{kind.__name__} under the name {name!r}", repr(found[name]))
            found[name] = kind()
    return found


def is_control(method: Attributor) -> bool:
    """Return whether a method is one that others have to beat."""
    return isinstance(method, (Gradient, RandomAttribution))


def needs_references(method: Attributor) -> bool:
    """Return whether a method compares with reference images and has none."""
    if isinstance(method, CaptumMethod):
        return method.needs_references
    return getattr(method, "references", ...) is None


def with_references(method: Attributor, images: Tensor) -> Attributor:
    """Return a method that compares with reference images (R, C, H, W)."""
    if isinstance(method, CaptumMethod):
        return method.with_references(images)
    return replace(method, references=images)  # type: ignore[type-var]
