"""What the numbers say, in sentences: each follows from intervals by rule, whichever way they point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from study.numbers import COMBINED, OTHERS
from study.plans import (
    CLEAN,
    GAUSSIAN,
    MIXTURE,
    REFERENCE,
    SAMPLES,
    TIME,
    TRANSFER,
    VARIATIONS,
    WITH_SIGMA,
    WITHOUT_SIGMA,
)
from study.words import TABLES, column, percent, points, row, shown, sign

Table = dict[str, Any]
_MEANS = (COMBINED, OTHERS)
_VERBS = {1: "surely raises", -1: "surely lowers", 0: "undecided"}


def short(every: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the rows of the table that opens the page: how far SIGMA training is ahead of others in mean accuracy."""
    others = (CLEAN, GAUSSIAN, "fgsm")
    yield ["images", "SIGMA samples", *(f"over {_named(name)}" for name in others)]
    for found in every:
        for name in (SAMPLES, TIME):
            for regime in (REFERENCE, TRANSFER):
                table = found["tables"][name]
                cells = [[difference(table, regime, against, mean) for mean in _MEANS] for against in others]
                if _has(table, regime):
                    kind = f"{row(regime).removeprefix('SIGMA ')}, {TABLES[name]}"
                    yield [found["dataset"]["title"], kind, *(" / ".join(map(_bold, cell)) for cell in cells)]


def _bold(ahead: dict[str, float] | None) -> str:
    if ahead is None:
        return "not measured"
    return f"**{points(ahead)}**" if sign(ahead) else points(ahead)


def conclusions(found: dict[str, Any]) -> Iterator[str]:
    """Yield the sentences that open the page, for one dataset."""
    for name in (SAMPLES, TIME):
        table, columns = found["tables"][name], shown(found)
        for against in (CLEAN, GAUSSIAN):
            for regime in WITH_SIGMA:
                if _has(table, regime):
                    yield _effect(table, TABLES[name], regime, against, columns)
        if _has(table, MIXTURE) and _has(table, WITHOUT_SIGMA):
            yield _effect(table, TABLES[name], MIXTURE, WITHOUT_SIGMA, columns)
        yield _best(table, TABLES[name], columns)
    yield from _varied(found["tables"][VARIATIONS], shown(found))
    yield _trust(found)
    yield from _made(found["tables"][SAMPLES])
    yield from _edge(found)


def difference(table: Table, regime: str, against: str, condition: str) -> dict[str, float] | None:
    """Return what a row is ahead of another by, or None where that was not measured."""
    wanted = (regime, against, condition)
    entries = (e for e in table["differences"] if (e["row"], e["against"], e["condition"]) == wanted)
    return next(entries, None)


def _has(table: Table, name: str) -> bool:
    return any(entry["name"] == name for entry in table["rows"])


def _named(name: str) -> str:
    return {
        CLEAN: "the clean control",
        GAUSSIAN: "the best Gaussian noise",
        WITHOUT_SIGMA: "the same without SIGMA",
    }.get(name, f"{row(name)} training")


def _effect(table: Table, title: str, regime: str, against: str, columns: list[str]) -> str:
    parts: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for name in columns:
        ahead = difference(table, regime, against, name)
        if ahead is not None and name not in _MEANS:
            parts[sign(ahead)].append(column(name) + (f" {points(ahead)}" if sign(ahead) else ""))
    said = [f"{verb} {', '.join(parts[key])}" for key, verb in _VERBS.items() if parts[key]]
    return f"{row(regime)}, {title}, against {_named(against)}: {'; '.join(said)}."


def _best(table: Table, title: str, columns: list[str]) -> str:
    parts = []
    for name in columns:
        ranked = sorted(
            (cell for cell in table["cells"] if cell["condition"] == name), key=lambda cell: -cell["accuracy"]["mean"]
        )
        parts.append(f"{column(name)} {row(ranked[0]['row'])} {percent(ranked[0]['accuracy'])}")
    return f"Highest in each column, {title} (not always surely so): " + "; ".join(parts) + "."


def _varied(table: Table, columns: list[str]) -> Iterator[str]:
    known = (CLEAN, GAUSSIAN, REFERENCE, "base")
    names = [entry["name"] for entry in table["rows"] if entry["name"] not in known]
    for against in (REFERENCE, GAUSSIAN, CLEAN):
        parts: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for name in names:
            ahead = difference(table, name, against, OTHERS)
            if ahead is not None:
                parts[sign(ahead)].append(f"{name} {points(ahead)}")
        named = "the settings above" if against == REFERENCE else _named(against)
        yield (
            f"Of {len(names)} variations of SIGMA on the fly, by the mean without SIGMA's own condition, "
            f"{len(parts[1])} are surely better than {named}{_list(parts[1])}, {len(parts[-1])} surely worse"
            f"{_list(parts[-1])}, {len(parts[0])} undecided."
        )
    for condition in columns:
        ranked = [(found, name) for name in names if (found := difference(table, name, REFERENCE, condition))]
        sure = [f"{name} {points(found)}" for found, name in ranked if sign(found)]
        if condition not in _MEANS and sure:
            yield f"Variations that surely change {column(condition)}: {'; '.join(sure)}."


def _list(parts: list[str]) -> str:
    return f" ({'; '.join(parts)})" if parts else ""


def _trust(found: dict[str, Any]) -> str:
    cells = [
        cell for name in (SAMPLES, TIME) for cell in found["tables"][name]["cells"] if cell["condition"] not in _MEANS
    ]
    flagged = sum(bool(cell["flags"]) for cell in cells)
    low = sum(not cell["above_chance"] for cell in cells)
    missed = [c["unconverged"] for c in cells if c["condition"] == "sigma/adaptive" and c["unconverged"] is not None]
    walks = f"; of SIGMA's adaptive walks {min(missed):.0%} to {max(missed):.0%} did not arrive" if missed else ""
    return (
        f"Of {len(cells)} cells of the first two tables {flagged} have a flag that says why they may be too good, and "
        f"{low} are not surely above chance ({cells[0]['chance']:.0%}){walks}, so that this column is an upper bound."
    )


def _made(table: Table) -> Iterator[str]:
    """Say how many of the samples that training made are what the paper calls zero-confidence samples."""
    walked = [entry for entry in table["rows"] if entry.get("converged") is not None]
    if walked:
        parts = [f"{row(e['name'])} {e['converged']:.0%} (in {e['walk_steps']:.0f} steps)" for e in walked]
        yield (
            f"Of the SIGMA samples that training made so many had lost the label's confidence: {', '.join(parts)}; the "
            "others are walks that were cut, weaker than the paper's samples."
        )


def _edge(found: dict[str, Any]) -> Iterator[str]:
    for entry in found["sweep"]:
        tried = [each["std"] for each in entry["rows"]]
        if entry["best"] in (min(tried), max(tried)):
            end = "largest" if entry["best"] == max(tried) else "smallest"
            yield f"The best Gaussian noise, of std {entry['best']:g}, is the {end} swept: one beyond might be better."
