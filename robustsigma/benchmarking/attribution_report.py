"""What a benchmark returns: its results as tables, flags and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robustsigma.engine.metrics import Interval
from robustsigma.engine.metrics.interval import from_dict
from robustsigma.engine.validation import choice, fail
from robustsigma.report import attribution, text
from robustsigma.report.base import Report
from robustsigma.report.notebook import html_table
from robustsigma.runs.results import AttributionResults


@dataclass(frozen=True, eq=False, repr=False)
class AttributionReport(Report):
    """The report of `benchmark` and `run_benchmark`: scores of methods by metrics, with flags and findings.

    `print(report)` shows its tables, and a notebook shows them as HTML.

    Attributes:
        results: everything that was measured; `results.cells` has an entry for each model, method and metric.
        path: path of the HTML file in the folder `out`, or None without one.
        arrays: images of the gallery with the methods' maps.

    Example:
        >>> report = benchmark(net, test_set, {"IG": IntegratedGradients(), "mine": function})
        >>> report.score("IG", "difference").low, report.flags
        >>> report.save("report.html")
    """

    _PLACE: ClassVar = {"model": "model", "method": "method", "metric": "metric"}

    results: AttributionResults
    path: Path | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def score(self, method: str, metric: str, model: str | None = None) -> Interval | None:
        """Return the mean of a metric over images with its 95% interval, or None where no image has a value.

        Args:
            method: name of the method.
            metric: its id, such as "difference", "sic", "iou" or "seconds".
            model: name of the model; None is the only one.

        Raises:
            ValueError: there is no such method, metric or model, or several models.
        """
        models = [entry["id"] for entry in self.results.models]
        if model is None and len(models) > 1:
            raise fail("model", f"one of {models}", "None")
        given = {"model": models[0] if model is None else model, "method": method, "metric": metric}
        for key, value in given.items():
            choice(key, value, list(dict.fromkeys(cell[key] for cell in self.results.cells)))
        cell = next((c for c in self.results.cells if all(c[key] == value for key, value in given.items())), None)
        return None if cell is None else from_dict(cell)

    def _repr_html_(self) -> str:
        results = self.to_dict()
        *tables, last = attribution.score_tables(results)
        notes = [*text.flags(results), *last.footnotes]
        return "".join([*(html_table(each, each.footnotes) for each in tables), html_table(last, notes)])

    def _numbers(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        found = {key: cell[key] for key in ("mean", "low", "high")}
        found |= {"images": cell["n"], "best": cell["best"], "significant": cell["clear"]}
        return {**found, "against_random": (cell["against_random"] or {}).get("verdict")}
