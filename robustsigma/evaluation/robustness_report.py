"""What an evaluation returns: its results as tables, flags and files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from robustsigma.engine.metrics import Interval
from robustsigma.engine.validation import fail, near
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.report import print_table, robustness, write_page
from robustsigma.report.notebook import html_table
from robustsigma.runs.results import RobustnessResults


@dataclass(frozen=True, eq=False, repr=False)
class RobustnessReport:
    """The report of `evaluate` and `run_study`: accuracies of models under conditions, with flags and findings.

    `print(report)` shows its table, and a notebook shows it as HTML.

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

    results: RobustnessResults
    path: Path | None = None
    per_image: Mapping[tuple[str, str], Outcomes] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def findings(self) -> list[str]:
        """Sentences about the measured values."""
        return self.results.findings

    @property
    def flags(self) -> list[dict[str, str]]:
        """Every reason to doubt a number, with its `code` and `message`; those of a cell name `model` and `condition`.

        The others concern the whole evaluation.
        """
        of_cells = [
            {**flag, "model": cell["regime"], "condition": cell["condition"]}
            for cell in self.results.cells
            for flag in cell["flags"]
        ]
        return [*self.results.flags, *of_cells]

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
        models = [entry["id"] for entry in self.results.regimes]
        if model not in models:
            raise fail("model", f"one of {models}", repr(model) + near(model, models))
        ids = [entry["id"] for entry in self.results.conditions]
        known = next((each for each in (condition, f"{condition}/adaptive") if each in ids), None)
        if known is None:
            raise fail("condition", f"one of {ids}", repr(condition) + near(condition, ids))
        return model, known

    def table(self, width: int | None = None) -> str:
        """Return the accuracies in % with intervals and codes of flags, and the flags, as plain text.

        Args:
            width: characters in a line; None takes the terminal's.
        """
        console = Console(file=io.StringIO(), width=width, color_system=None)
        print_table(self.to_dict(), console, intervals=True)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        models, conditions = (
            ", ".join(entry["id"] for entry in found) for found in (self.results.regimes, self.results.conditions)
        )
        return f"RobustnessReport(models: {models}; conditions: {conditions})"

    def _repr_html_(self) -> str:
        results = self.to_dict()
        table = robustness.accuracy_table(results)
        return html_table(table, [*robustness.run_flags(results), *table.footnotes])

    def to_dict(self) -> dict[str, Any]:
        """Return the results in plain JSON types, as `results.json` has them."""
        return self.results.to_json()

    def to_pandas(self) -> Any:
        """Return a data frame with a row for each model and condition.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from error
        rows = []
        for cell in self.results.cells:
            found = {"model": cell["regime"], "condition": cell["condition"], "images": cell["n"]}
            found |= {"accuracy": cell["accuracy"]["mean"], **{end: cell["accuracy"][end] for end in ("low", "high")}}
            for key in ("top5", "confidence"):
                found[key] = (cell.get(key) or {}).get("mean")
            found["passes"] = cell.get("passes")
            rows.append({**found, "flags": ", ".join(flag["code"] for flag in cell["flags"])})
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> Path:
        """Write the report as one HTML file, or the results as JSON, and return the path.

        Args:
            path: a file that ends in ".html" or ".json"; its folder is made.

        Raises:
            ValueError: another ending.
            ImportError: an HTML file needs the extra `report`.
        """
        path = Path(path)
        if path.suffix not in (".html", ".json"):
            raise fail("path", "a file that ends in .html or .json", str(path))
        if path.suffix == ".json":
            return self.results.write(path)
        return write_page(self.to_dict(), dict(self.arrays), path)
