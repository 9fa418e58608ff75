"""Measured values of one model by method and metric, and the comparisons between methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.benchmarking.measure import Arrays
from robustsigma.engine.metrics import Interval, MetricSpec, Skip, mean_interval, paired_difference, significance
from robustsigma.engine.metrics.interval import as_dict

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MetricColumn:
    """A metric with its place in the report.

    Attributes:
        metric: its name, title and direction.
        group: group of the metric, see `AttributionMetric`.
        settings: settings of the metric, as text.
    """

    metric: MetricSpec
    group: str
    settings: str

    @property
    def ranks(self) -> bool:
        """Whether the metric ranks maps, so that methods must be better than random maps."""
        return self.group in ("faithfulness", "localization")


@dataclass(frozen=True)
class ScoreTable:
    """All values of one model.

    Attributes:
        columns: columns of the table.
        arrays: arrays of each method by name: "value/…", "skip/…", "curve/…" and notes, a row for each image.
        controls: names of the methods that others are compared with.
        random: the name of the random control.
    """

    columns: list[MetricColumn]
    arrays: dict[str, Arrays]
    controls: frozenset[str]
    random: str
    _intervals: dict[tuple[str, str], Interval | None] = field(default_factory=dict, repr=False)
    _better: dict[tuple[str, str, str], Interval | None] = field(default_factory=dict, repr=False)

    @property
    def compared(self) -> list[str]:
        """Names of the methods that are not controls."""
        return [method for method in self.arrays if method not in self.controls]

    def values(self, method: str, name: str) -> Floats:
        """Return a method's values over images, NaN where an image was skipped."""
        return self.arrays[method].get(f"value/{name}", np.empty(0)).astype(np.float64)

    def interval(self, method: str, name: str) -> Interval | None:
        """Return the mean over the images that have a value, or None without one."""
        if (method, name) not in self._intervals:
            values = self.values(method, name)
            finite = values[np.isfinite(values)]
            self._intervals[method, name] = mean_interval(finite) if len(finite) else None
        return self._intervals[method, name]

    def skipped(self, method: str, name: str) -> dict[str, int]:
        """Return how many images have no value, by reason."""
        codes = self.arrays[method].get(f"skip/{name}", np.empty(0, dtype=np.int64))
        return {Skip(int(code)).reason: count for code, count in Counter(codes[codes != 0].tolist()).items()}

    def advantage(self, method: str, over: str, column: MetricColumn) -> Interval | None:
        """Return by how much a method is better than another on the images that both have values for.

        The sign is such that positive is better; None where there is no such image.
        """
        name = column.metric.name
        key = (method, over, name)
        if key not in self._better:
            mine, theirs = self.values(method, name), self.values(over, name)
            both = np.isfinite(mine) & np.isfinite(theirs) if len(mine) == len(theirs) else np.zeros(0, dtype=bool)
            found = None
            if both.any():
                found = paired_difference(mine[both], theirs[both])
                if column.metric.better == "lower":
                    found = Interval(-found.mean, -found.high, -found.low, found.n, found.p)
            self._better[key] = found
        return self._better[key]

    def ranked(self, column: MetricColumn) -> list[str]:
        """Return the methods that are not controls and have a mean, the best first."""
        means = {}
        for method in self.compared:
            found = self.interval(method, column.metric.name)
            if found is not None:
                means[method] = found.mean
        sign = -1 if column.metric.better == "higher" else 1
        return sorted(means, key=lambda method: sign * means[method])

    def significance(self, pairs: Sequence[tuple[str, str]], column: MetricColumn) -> list[int]:
        """Return 1 where the first method of a pair is significantly better, -1 where it is worse, else 0.

        The pairs are one family: the values are corrected for their number.
        """
        return significance([self.advantage(method, over, column) for method, over in pairs])

    def peers(self, column: MetricColumn) -> list[str]:
        """Return the methods that the best one is not significantly better than, in their order.

        The family is the comparison of the best method with every other that is not a control.
        """
        order = self.ranked(column)
        signs = self.significance([(order[0], other) for other in order[1:]], column) if order else []
        return [other for other, sign in zip(order[1:], signs, strict=True) if sign <= 0]

    def is_clear(self, column: MetricColumn) -> bool:
        """Return whether the best method is significantly better than the second."""
        order = self.ranked(column)
        return len(order) > 1 and order[1] not in self.peers(column)

    def against_random(self, method: str, column: MetricColumn) -> tuple[Interval, str] | None:
        """Return the advantage over random maps and "better", "worse" or "same"; None where it does not apply.

        The family is the comparison of every method with random maps in this column.
        """
        if not column.ranks or method == self.random:
            return None
        found = self.advantage(method, self.random, column)
        if found is None:
            return None
        others = [each for each in self.arrays if each != self.random]
        sign = self.significance([(each, self.random) for each in others], column)[others.index(method)]
        return found, ("same", "better", "worse")[sign]

    def is_informative(self, column: MetricColumn) -> bool:
        """Return whether any method but the controls is significantly better than random maps."""
        verdicts = [self.against_random(method, column) for method in self.compared]
        return any(verdict is not None and verdict[1] == "better" for verdict in verdicts)

    def note(self, method: str, name: str) -> float:
        """Return the mean over images of a note."""
        return float(self.arrays[method][f"note/{name}"].mean())


def as_json(interval: Interval | None) -> dict[str, Any]:
    """Return an interval as plain JSON types, with None for what is not there."""
    if interval is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    return dict(as_dict(interval))
