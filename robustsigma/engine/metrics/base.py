"""Base classes of metrics of attributions, the context they are evaluated in, and their results."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar, final

import torch
from torch import Tensor, nn

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors import Attribution
from robustsigma.engine.attributors.base import Reduction, reduce_channels
from robustsigma.engine.classifier import Classifier, as_classifier
from robustsigma.engine.short_repr import ShortRepr

Better = Literal["higher", "lower"]
MetricGroup = Literal["faithfulness", "localization", "complexity", "consistency", "cost"]
T = TypeVar("T")


class Skip(enum.IntEnum):
    """Why an image has no value; `reason` says it in words."""

    reason: str

    def __new__(cls, value: int, reason: str = "") -> Skip:
        """Return the member of a number."""
        member = int.__new__(cls, value)
        member._value_, member.reason = value, reason
        return member

    NO = 0, "has a value"
    LOW_CONFIDENCE = 1, "the network's confidence is too low"
    NO_INFORMATION = 2, "blurred, the image compresses no better"
    BLUR_EXPLAINS = 3, "blurred, the image keeps its score"
    NO_VARIANCE = 4, "one of the two sides does not vary"
    EMPTY_MASK = 5, "the object is not annotated"
    NO_DROP = 6, "the method has no path along which the score drops"
    ONE_PATH = 7, "the method has one path"
    NOT_STOCHASTIC = 8, "the method uses no random numbers"
    NO_GAIN = 9, "the full image scores no higher than the empty one"
    NOT_FINITE = 10, "a score or the value is not finite"
    NOT_MEASURED = 11, "not measured, as the maps were made elsewhere"


@dataclass(frozen=True)
class MetricSpec:
    """One number that a metric gives for each image.

    Attributes:
        name: short and unique, as in tables of values.
        title: for tables and figures.
        better: "higher" or "lower".
        about: a description in one phrase.
    """

    name: str
    title: str
    better: Better
    about: str


@dataclass(frozen=True, eq=False, repr=False)
class Curve(ShortRepr):
    """A curve for each image, over a grid that they share.

    Attributes:
        x: (K,) the grid.
        y: (B, K), NaN in all of an image's places where it was skipped.
        x_title: title of the x axis.
        y_title: title of the y axis.
    """

    x: Tensor
    y: Tensor
    x_title: str
    y_title: str


@dataclass(frozen=True, eq=False, repr=False)
class MetricResult(ShortRepr):
    """The values of a metric. B images.

    Attributes:
        values: (B,) float64 by the quantity's name, NaN where the image was skipped.
        skips: int64 (B,) by name, members of `Skip`; without an entry no image was skipped.
        curves: by name.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> result = Localization()(context, Gradient()(classifier, images, labels))
        >>> result.values, result.skips
    """

    values: Mapping[str, Tensor]
    skips: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def skipped(self, name: str) -> Tensor:
        """Return int64 (B,), why each image has no value; 0 where it has one."""
        values = self.values[name]
        return self.skips.get(name, torch.zeros(len(values), dtype=torch.int64, device=values.device))

    def accounted(self) -> MetricResult:
        """Return the same, where an image without a finite value and without a reason gets one."""
        silent = {name: ~value.isfinite() & (self.skipped(name) == 0) for name, value in self.values.items()}
        lost = [name for name, rows in silent.items() if rows.any()]
        if not lost:
            return self
        values = {name: self.values[name].masked_fill(silent[name], torch.nan) for name in lost}
        skips = {name: self.skipped(name).masked_fill(silent[name], int(Skip.NOT_FINITE)) for name in lost}
        return replace(self, values={**self.values, **values}, skips={**self.skips, **skips})


class MetricContext:
    """The images, their target classes and the network on which attributions are evaluated.

    Everything that metrics need and that does not depend on the attribution (perturbed images' scores, blurred
    images, entropies) is computed once and shared by all attributions evaluated on them.

    Args:
        classifier: the network; left as it was. A bare network is taken as one for images in [0, 1], with a warning.
        images: float (B, C, H, W) in [0, 1].
        target: class of each image, an int or B of them; None takes the predicted class.
        masks: bool (B, H, W) or numbers in [0, 1], the object that decides the class (1) and the rest (0); None for
            unannotated images.
        seed: seed of all random draws of metrics: an int, which is combined with each image's pixels, or int64 (B,), a
            seed for each image; see `robustsigma.engine.noise.seeds`.

    Attributes:
        images: (B, C, H, W), a copy in at least single precision.
        target: int64 (B,).
        seeds: int64 (B,).
        masks: (B, H, W) or None.
        logits: (B, K) of the images.

    Raises:
        ValueError: an argument outside what is stated here.

    Example:
        >>> context = MetricContext(classifier, images, labels, masks=masks, seed=0)
        >>> InsertionDeletion()(context, Gradient()(classifier, images, labels)).values["insertion"]
    """

    def __init__(
        self,
        classifier: Classifier | nn.Module,
        images: Tensor,
        target: int | Sequence[int] | Tensor | None = None,
        *,
        masks: Tensor | None = None,
        seed: int | Tensor = 0,
    ) -> None:
        classifier = as_classifier(classifier)
        validation.images(images, classifier.bounds)
        chosen = None if target is None else validation.target(target, images)
        self.classifier = classifier
        self.masks = None if masks is None else _checked_masks(masks, images)
        with classifier.frozen():
            self.images = classifier.prepare_input(images)
            self.seeds = noise.seeds(seed, self.images).clone()
            self.logits = classifier.logits(self.images)
            self.target = self.logits.argmax(1) if chosen is None else chosen.clone()
            validation.target_range(validation.extent(self.target), self.logits.shape[1])
        if not torch.isfinite(self.logits).all():
            raise validation.not_finite("logits", "the images of a MetricContext")
        self._shared: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.images)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gives, called once for each key."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found


def _checked_masks(masks: Tensor, images: Tensor) -> Tensor:
    wanted = (len(images), *images.shape[2:])
    if not isinstance(masks, Tensor) or tuple(masks.shape) != wanted:
        got = f"shape {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise validation.fail("masks", f"shape {wanted}, one for each image", got)
    soft = masks.detach().to(images.device, torch.float64)
    if not bool(((soft >= 0) & (soft <= 1)).all()):  # NaN is on neither side
        raise validation.fail("masks", "bool, or numbers in [0, 1]", "others")
    return soft.clone()


@dataclass(frozen=True)
class AttributionMetric(validation.Settings, ABC):
    """A metric with its hyper-parameters; subclasses are frozen dataclasses.

    Attributes:
        quantities: what it gives for each image.
        needs_masks: whether it compares with the masks of the context.
        group: what it is about. Only metrics of "faithfulness" and "localization" are compared with random maps.

    Example:
        >>> [quantity.title for quantity in Infidelity().quantities]
    """

    needs_masks: ClassVar[bool] = False
    group: ClassVar[MetricGroup] = "faithfulness"

    @property
    @abstractmethod
    def quantities(self) -> tuple[MetricSpec, ...]:
        """What the metric gives for each image."""

    @final
    def __call__(self, context: MetricContext, attribution: Attribution | Tensor) -> MetricResult:
        """Evaluate an attribution of each image of the context.

        Args:
            context: what was explained.
            attribution: an attributor's result; or values (B, C, H, W) or a heatmap (B, H, W) made elsewhere, where
                the metric needs no more.

        Raises:
            ValueError: another shape, values that are not finite, a result for other classes than the context's, a
                metric that needs masks for a context without them, or one that gives other values than its quantities.
        """
        _check(context, attribution)
        if self.needs_masks and context.masks is None:
            raise validation.fail("masks", f"the context's masks, which {type(self).__name__} needs", "None")
        with context.classifier.frozen():
            found = self.measure(context, attribution)
        names, given = {quantity.name for quantity in self.quantities}, {*found.values}
        if names != given:
            got = ", ".join(sorted(given)) or "none"
            raise validation.fail(f"{type(self).__name__}.measure", f"values {', '.join(sorted(names))}", got)
        return found.accounted()

    @abstractmethod
    def measure(self, context: MetricContext, attribution: Attribution | Tensor) -> MetricResult:
        """Compute the metric; the arguments are checked, the classifier is frozen."""


def _check(context: MetricContext, attribution: Attribution | Tensor) -> None:
    values = attribution.values if isinstance(attribution, Attribution) else attribution
    count, _, height, width = context.images.shape
    if not isinstance(values, Tensor):
        raise validation.fail("attribution", "an Attribution or a tensor", type(values).__name__)
    fits = values.ndim in (3, 4) and len(values) == count and tuple(values.shape[-2:]) == (height, width)
    if not fits or not values.is_floating_point():
        expected = f"floating values ({count}, C, {height}, {width}) or ({count}, {height}, {width})"
        raise validation.fail("attribution", expected, f"{values.dtype} {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise validation.fail("attribution", "finite values", "NaN or infinity")
    if isinstance(attribution, Attribution) and not bool((attribution.target == context.target).all()):
        raise validation.fail("attribution", "one of the context's target classes", "one of other classes")


@dataclass(frozen=True)
class HeatmapMetric(AttributionMetric):
    """A metric of one number for each pixel.

    Args:
        reduction: how channels become one: "abs_sum", "sum_abs", "sum" or "mean". A tensor (B, H, W) is taken as it is.

    Example:
        >>> isinstance(InsertionDeletion(), HeatmapMetric)
        True
    """

    reduction: Reduction = field(default="abs_sum", kw_only=True)

    @final
    def measure(self, context: MetricContext, attribution: Attribution | Tensor) -> MetricResult:
        """Reduce the channels and compute the metric."""
        values = attribution.values if isinstance(attribution, Attribution) else attribution
        values = values.detach().to(context.images.device, torch.float64)
        return self.of_heatmaps(context, values if values.ndim == 3 else reduce_channels(values, self.reduction))

    @abstractmethod
    def of_heatmaps(self, context: MetricContext, heatmaps: Tensor) -> MetricResult:
        """Compute the metric of heatmaps, float64 (B, H, W)."""


def constant(heatmaps: Tensor) -> Tensor:
    """Return bool (B,), whether all pixels of a map are equal; no metric may reward such a map."""
    flat = heatmaps.flatten(1)
    return flat.amin(1) == flat.amax(1)
