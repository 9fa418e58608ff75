"""Base class of both reports: text, JSON, data frames and files."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from robustsigma import report
from robustsigma.engine.validation import fail
from robustsigma.runs.files import write_arrays
from robustsigma.runs.results import Results


def publish(results: Results, arrays: dict[str, np.ndarray], folder: Path) -> Path:
    """Write `results.json`, `arrays.npz` and the report of a finished run, and return the path of the page."""
    results.write(folder / "results.json")
    write_arrays(folder / "arrays.npz", arrays)
    return report.write_report(results.to_json(), arrays, folder)


class Report(ABC):
    """The results of one run, with flags and findings.

    Attributes:
        results: everything that was measured.
        path: path of the HTML file, or None without one.
        arrays: the images and maps of the page.
    """

    _PLACE: ClassVar[dict[str, str]]  # what the place of a cell consists of, each with its key in the results

    results: Results
    path: Path | None
    arrays: Mapping[str, np.ndarray]

    @property
    def verdict(self) -> list[str]:
        """At most three sentences that a reader needs before any table."""
        return self.results.verdict

    @property
    def findings(self) -> list[str]:
        """Sentences about the measured values, with their intervals."""
        return self.results.findings

    @property
    def flags(self) -> list[dict[str, str]]:
        """Every reason to doubt a number, with its `code` and `message`; those of a cell also name its place.

        The place is `model` and `condition` in an evaluation; `model`, `method` and `metric` in a benchmark. Flags
        without one concern the whole run.
        """
        of_cells = [{**flag, **self._place(cell)} for cell in self.results.cells for flag in cell["flags"]]
        return [*self.results.flags, *of_cells]

    def table(self, width: int | None = None) -> str:
        """Return the tables of the report and the flags, as plain text.

        Args:
            width: characters in a line; None takes the terminal's.
        """
        console = Console(file=io.StringIO(), width=width, color_system=None)
        report.print_table(self.to_dict(), console, intervals=True)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def __str__(self) -> str:
        clear = "No flags: the checks that were made found no reason to doubt these numbers."
        page = f"Report: {self.path}" if self.path is not None else ""
        return "\n".join(filter(None, (*self.verdict, self.table(), "" if self.flags else clear, page)))

    def to_dict(self) -> dict[str, Any]:
        """Return the results in plain JSON types, as `results.json` has them."""
        return self.results.to_json()

    def to_pandas(self) -> Any:
        """Return a data frame with a row for each cell of the tables: its place, its numbers and its flags.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from error
        rows = []
        for cell in self.results.cells:
            codes = ", ".join(flag["code"] for flag in cell["flags"])
            rows.append({**self._place(cell), **self._numbers(cell), "flags": codes})
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
        return report.write_page(self.to_dict(), dict(self.arrays), path)

    def __repr__(self) -> str:
        found = {name: getattr(self.results, f"{key}s") for name, key in self._PLACE.items()}
        shown = (f"{name}s: {', '.join(entry['id'] for entry in entries)}" for name, entries in found.items())
        return f"{type(self).__name__}({'; '.join(shown)})"

    def _place(self, cell: Mapping[str, Any]) -> dict[str, str]:
        return {name: cell[key] for name, key in self._PLACE.items()}

    @abstractmethod
    def _numbers(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a data frame shows of a cell."""
