"""A torchmetrics module that keeps the values of every image, for intervals and paired differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from robustsigma.engine.metrics.base import AttributionMetric, MetricResult, Skip
from robustsigma.engine.metrics.interval import Interval, mean_interval

_SKIP = "skip/"


class Summary(NamedTuple):
    """The summary of one value over many images.

    Attributes:
        interval: the mean over those that have a value, with its 95 % interval and their number; None without one.
        skipped: how many have none, by reason.
    """

    interval: Interval | None
    skipped: dict[str, int]


class PerSample(Metric):
    """Named values of each image, gathered over processes and put in the order of the images' indices.

    Args:
        names: names of the values.
        kwargs: keyword arguments of torchmetrics.Metric.
    """

    full_state_update = False
    indices: list[Tensor]

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        for name in ("indices", *self.names):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @classmethod
    def of(cls, metrics: Iterable[AttributionMetric], **kwargs: Any) -> PerSample:
        """Return a module for the values of some metrics of attributions, which are added by `add`."""
        names = [quantity.name for metric in metrics for quantity in metric.quantities]
        return cls([*names, *(_SKIP + name for name in names)], **kwargs)

    def add(self, indices: Tensor, *measured: MetricResult) -> None:
        """Add the results of the metrics on some images; indices as in `update`."""
        values = {name: value for found in measured for name, value in found.values.items()}
        skips = {_SKIP + name: found.skipped(name) for found in measured for name in found.values}
        self.update(indices, {**values, **skips})

    def summaries(self) -> dict[str, Summary]:
        """Return means with intervals, and the numbers of skipped images by reason, by the value's name."""
        columns = self.compute()
        found = {}
        for name in (name for name in self.names if not name.startswith(_SKIP)):
            values = columns[name]
            codes = columns.get(_SKIP + name, torch.zeros_like(values))
            finite = values[values.isfinite()]
            interval = mean_interval(finite.cpu().numpy()) if len(finite) else None
            counts = Counter(int(code) for code in codes[codes != 0])
            found[name] = Summary(interval, {Skip(code).reason: count for code, count in counts.items()})
        return found

    def update(self, indices: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add some images.

        Args:
            indices: int64 (B,), each image's own.
            values: (B,) for each name.

        Raises:
            ValueError: other names, or a shape that does not fit.
        """
        if set(values) != set(self.names):
            raise ValueError(f"values: expected {', '.join(self.names)}, got {', '.join(values)}")
        for name, value in values.items():
            if value.shape != indices.shape:
                raise ValueError(f"values[{name!r}]: expected shape {tuple(indices.shape)}, got {tuple(value.shape)}")
            getattr(self, name).append(value.detach())
        self.indices.append(indices.detach())

    def compute(self) -> dict[str, Tensor]:
        """Return "indices" (N,), increasing and each once, and the values (N,) by name."""
        columns = {name: getattr(self, name) for name in ("indices", *self.names)}
        joined = {name: torch.cat(v) if isinstance(v, list) else v for name, v in columns.items()}
        order = joined["indices"].argsort(stable=True)
        ranked = joined["indices"][order]
        first = torch.ones_like(ranked, dtype=torch.bool)
        first[1:] = ranked[1:] != ranked[:-1]  # padding repeats images
        return {name: value[order][first] for name, value in joined.items()}
