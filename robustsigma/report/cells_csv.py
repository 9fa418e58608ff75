"""The cells of a result as a CSV table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from robustsigma.report.text import printable


def cells_csv(cells: Iterable[dict[str, Any]]) -> str:
    """Return a CSV table with a row for each cell, and a column for each number that any of them has.

    Nested keys are joined by dots, flags are their codes, and what is missing is empty. Text that a spreadsheet would
    take for a formula begins with an apostrophe.

    Example:
        >>> print(cells_csv([{"regime": "base", "accuracy": {"mean": 0.5}, "flags": [{"code": "masked"}]}]), end="")
        regime,accuracy.mean,flags
        base,0.5,masked
    """
    rows = [dict(_flat(cell)) for cell in cells]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            parts = (str(each["code"] if isinstance(each, dict) else each) for each in value)
            yield _safe(prefix + key), _safe(" ".join(parts))
        else:
            yield _safe(prefix + key), _safe(value) if isinstance(value, str) else value


def _safe(value: str) -> str:
    return f"'{printable(value)}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else printable(value)
