"""What a benchmark returns: its results as tables, flags and files."""

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
from robustsigma.report import attribution, print_attribution_table, text, write_page
from robustsigma.report.notebook import html_table
from robustsigma.runs.results import AttributionResults


@dataclass(frozen=True, eq=False, repr=False)
class AttributionReport:
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

    results: AttributionResults
    path: Path | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def findings(self) -> list[str]:
        """Sentences about the measured values."""
        return self.results.findings

    @property
    def flags(self) -> list[dict[str, str]]:
        """Every reason to doubt a number, with its `code` and `message`; those of a cell name its place.

        The others concern the whole benchmark or a method.
        """
        of_cells = [
            {**flag, **{key: cell[key] for key in ("model", "method", "metric")}}
            for cell in self.results.cells
            for flag in cell["flags"]
        ]
        return [*self.results.flags, *of_cells]

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
            known = list(dict.fromkeys(cell[key] for cell in self.results.cells))
            if value not in known:
                raise fail(key, f"one of {known}", repr(value) + near(value, known))
        cell = next((c for c in self.results.cells if all(c[key] == value for key, value in given.items())), None)
        if cell is None or cell["mean"] is None:
            return None
        return Interval(*(cell[key] for key in ("mean", "low", "high", "n")))

    def table(self, width: int | None = None) -> str:
        """Return the scores of each model, the skipped images and the flags, as plain text.

        Args:
            width: characters in a line; None takes the terminal's.
        """
        console = Console(file=io.StringIO(), width=width, color_system=None)
        print_attribution_table(self.to_dict(), console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        parts = [("models", self.results.models), ("methods", self.results.methods), ("metrics", self.results.metrics)]
        return f"AttributionReport({'; '.join(f'{name}: {_listed(entries)}' for name, entries in parts)})"

    def _repr_html_(self) -> str:
        results = self.to_dict()
        *tables, last = attribution.score_tables(results)
        notes = [*text.flags(results), *last.footnotes]
        return "".join([*(html_table(each, each.footnotes) for each in tables), html_table(last, notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the results in plain JSON types, as `results.json` has them."""
        return self.results.to_json()

    def to_pandas(self) -> Any:
        """Return a data frame with a row for each model, method and metric.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from error
        rows = []
        for cell in self.results.cells:
            found = {key: cell[key] for key in ("model", "method", "metric", "mean", "low", "high")}
            found |= {"images": cell["n"], "best": cell["best"], "significant": cell["clear"]}
            found["against_random"] = (cell["against_random"] or {}).get("verdict")
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


def _listed(entries: list[dict[str, Any]]) -> str:
    return ", ".join(entry["id"] for entry in entries)
