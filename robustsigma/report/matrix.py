"""The matrix of a robustness evaluation, laid out: columns by reading, rows by protocol."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from robustsigma.report import text

READINGS = {
    "none": ("Clean and noise", "the same samples for every model"),
    "adaptive": ("Adaptive", "samples made against the model under test"),
    "worst": ("Worst case", "right under every one of the adaptive attacks"),
    "transfer": ("Transfer", "samples made once, against the base model"),
}
PROTOCOLS = {
    "none": ("Not retrained", "the base model, from which the rest starts"),
    "retrain": ("Retrained", "on samples made before training"),
    "on_the_fly": ("On the fly", "samples made against the model while it trains"),
}
_OPTIONAL = ("n", "seeds", "accuracy", "confidence", "calibration", "converged", "steps", "quality", "flags")


@dataclass(frozen=True)
class Head:
    """A regime or a condition, named."""

    id: str
    label: str
    group: str
    settings: str


@dataclass(frozen=True)
class Cell:
    """One accuracy with what stands beside it; `notes` are numbers of footnotes."""

    entry: dict[str, Any]
    notes: tuple[int, ...]

    @property
    def accuracy(self) -> dict[str, Any]:
        """The accuracy's mean and interval."""
        return self.entry.get("accuracy") or {}

    @property
    def flags(self) -> list[dict[str, Any]]:
        """The checks that the cell failed."""
        return self.entry.get("flags") or []

    @property
    def unconverged(self) -> float | None:
        """Share of the samples that did not converge, where that can be said."""
        converged = text.finite(self.entry.get("converged"))
        return None if converged is None else 1 - converged


@dataclass(frozen=True)
class Group:
    """Columns of one reading or rows of one protocol."""

    key: str
    title: str
    hint: str
    heads: tuple[Head, ...]


@dataclass
class Matrix:
    """Columns, rows, cells and footnotes of the matrix."""

    columns: tuple[Group, ...]
    rows: tuple[Group, ...]
    cells: dict[tuple[str, str], Cell]
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def conditions(self) -> list[Head]:
        """Every column, in order."""
        return [head for group in self.columns for head in group.heads]

    @property
    def regimes(self) -> list[Head]:
        """Every row, in order."""
        return [head for group in self.rows for head in group.heads]

    def mean(self, regime: str, condition: str) -> float | None:
        """Return the accuracy of a cell, None if it is missing."""
        cell = self.cells.get((regime, condition))
        return None if cell is None else text.finite(cell.accuracy.get("mean"))


def check(results: dict[str, Any]) -> None:
    """Refuse what is not a result of schema 1.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    if not isinstance(results, dict) or results.get("schema") != 1:
        came = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise ValueError(f"results: expected a dict with schema 1, got {came!r}")
    for key in ("conditions", "regimes", "cells"):
        if not isinstance(results.get(key), list):
            raise ValueError(f"results[{key!r}]: expected a list, got {type(results.get(key)).__name__}")
    for key, wanted in (
        ("conditions", ("id", "name")),
        ("regimes", ("id", "name")),
        ("cells", ("regime", "condition")),
    ):
        for index, entry in enumerate(results[key]):
            for part in wanted:
                if not isinstance(entry.get(part), str):
                    raise ValueError(f"results[{key!r}][{index}][{part!r}]: expected a str, got {entry.get(part)!r}")


def one_seed_unsaid(results: dict[str, Any]) -> bool:
    """Return whether every model was trained once and no flag of the run says so."""
    flags = (f"{flag.get('code', '')} {flag.get('message', '')}" for flag in results.get("flags") or [])
    return len(results.get("seeds") or []) == 1 and not any("seed" in said.lower() for said in flags)


def build(results: dict[str, Any]) -> Matrix:
    """Lay out the matrix of a result.

    Args:
        results: what the evaluation measured (schema 1).

    Returns:
        The matrix; a pair that was not measured has no cell.
    """
    check(results)
    notes: list[tuple[str, str]] = []
    cells: dict[tuple[str, str], Cell] = {}
    for entry in results["cells"]:
        marks = footnotes(entry, notes)
        cells[entry["regime"], entry["condition"]] = Cell({**dict.fromkeys(_OPTIONAL), **entry}, marks)
    columns = _groups(results["conditions"], "reading", READINGS)
    rows = _groups(results["regimes"], "protocol", PROTOCOLS)
    return Matrix(columns, rows, cells, notes)


def footnotes(entry: dict[str, Any], notes: list[tuple[str, str]]) -> tuple[int, ...]:
    """Return the numbers of a cell's flags among the notes, from 1, after adding those that are new."""
    found = text.flags(entry)
    notes += [note for note in dict.fromkeys(found) if note not in notes]
    return tuple(notes.index(note) + 1 for note in found)


def named(label: str, protocol: str) -> str:
    """Return the name of a regime with its protocol, as the reports write it."""
    known = PROTOCOLS.get(protocol, (text.printable(protocol),))[0].lower()
    return label if protocol == "none" else f"{label}, {known}"


def _groups(entries: list[dict[str, Any]], key: str, known: dict[str, tuple[str, str]]) -> tuple[Group, ...]:
    """Return the entries by the value of one field, the known values first and in their order."""
    values = [str(entry.get(key) or "none") for entry in entries]
    twice = Counter(zip(values, (entry["name"] for entry in entries), strict=True))
    heads: dict[str, list[Head]] = {value: [] for value in [*known, *values] if value in values}
    for entry, value in zip(entries, values, strict=True):
        label = entry["id"] if twice[value, entry["name"]] > 1 else text.name(entry["name"])
        heads[value].append(Head(entry["id"], label, value, str(entry.get("settings") or "")))
    return tuple(
        Group(value, *known.get(value, (text.printable(value), "")), heads=tuple(found))
        for value, found in heads.items()
    )
