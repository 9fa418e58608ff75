"""What an evaluation returns: its results as tables, flags and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robustsigma.engine.metrics import Interval
from robustsigma.engine.validation import choice, fail
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.report import robustness
from robustsigma.report.base import Report
from robustsigma.report.notebook import html_table
from robustsigma.runs.results import RobustnessResults


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessReport(Report):
    """The report of `evaluate` and `run_study`: accuracies of models under conditions, with flags and findings.

    `print(report)` shows its verdict, table, flags and path, and a notebook shows it as HTML.

    Attributes:
        results: everything that was measured; `results.cells` has an entry for each model and condition.
        path: path of the HTML file in the folder `out`, or None without one.
        per_image: outcomes of each image by model and id of the condition; empty in a study, whose folder has them.
        arrays: images of the section `examples`, and of the other pictures of a study.

    Example:
        >>> report = evaluate(net, test_set, {"PGD": PGD(8 / 255)})
        >>> report.accuracy("model", "PGD").low, report.flags
        >>> report.save("report.html")
    """

    _PLACE: ClassVar = {"model": "regime", "condition": "condition"}

    results: RobustnessResults
    path: Path | None = None
    per_image: Mapping[tuple[str, str], Outcomes] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def accuracy(self, model: str, condition: str) -> Interval:
        """Return the accuracy of a model under a condition in [0, 1], with its 95% interval.

        After a minimum-norm attack (`FMN`) it is the share of images that no change of any size misled; see
        `results.distances` for the accuracy at each radius.

        Args:
            model: name of the model, "model" for one that came without a name.
            condition: name of the condition, made against this model; or an id, such as "PGD/transfer" or a worst case.

        Raises:
            ValueError: there is no such model or condition.
        """
        cells = {(cell["regime"], cell["condition"]): cell for cell in self.results.cells}
        return Interval(**cells[self._key(model, condition)]["accuracy"])

    def outcomes(self, model: str, condition: str) -> Outcomes:
        """Return the outcome of every image: `predictions`, `correct`, `confidences`, `top5` and more, (n,) each.

        Args:
            model: as in `accuracy`.
            condition: as in `accuracy`, but no worst case.

        Raises:
            ValueError: there is no such model or condition.
        """
        key = self._key(model, condition)
        if key not in self.per_image:
            raise fail("condition", "one of given models that is no worst case", repr(condition))
        return self.per_image[key]

    def _key(self, model: str, condition: str) -> tuple[str, str]:
        choice("model", model, [entry["id"] for entry in self.results.regimes])
        ids, adaptive = [entry["id"] for entry in self.results.conditions], f"{condition}/adaptive"
        if condition not in ids and adaptive in ids:
            return model, adaptive
        choice("condition", condition, ids)
        return model, condition

    def _repr_html_(self) -> str:
        results = self.to_dict()
        table = robustness.accuracy_table(results)
        return html_table(table, [*robustness.run_flags(results), *table.footnotes])

    def _numbers(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        accuracy = cell["accuracy"]
        found = {"images": cell["n"], "accuracy": accuracy["mean"], "low": accuracy["low"], "high": accuracy["high"]}
        found |= {key: (cell.get(key) or {}).get("mean") for key in ("top5", "confidence")}
        return {**found, "passes": cell.get("passes")}
