"""The results in sentences, which follow from the intervals by rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from robustsigma.engine.metrics.interval import LEVEL
from robustsigma.report import text
from robustsigma.runs.results import holm_of
from study.numbers import COMBINED, OTHERS
from study.setup import (
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

Table = dict[str, Any]
TABLES = {SAMPLES: "matched by samples", TIME: "matched by time", VARIATIONS: "variations"}
_ROWS = {
    "base": "base model",
    CLEAN: "clean control",
    GAUSSIAN: "best Gaussian noise",
    "fgsm": "FGSM",
    "pgd": "PGD",
    TRANSFER: "SIGMA made once (the paper)",
    REFERENCE: "SIGMA on the fly",
    "sigma_cache": "SIGMA with a sample cache",
    MIXTURE: "noise + FGSM + SIGMA",
    WITHOUT_SIGMA: "noise + FGSM",
}
_CONDITIONS = {
    "clean": "clean images",
    "gaussian": "Gaussian noise",
    "fgsm/adaptive": "FGSM",
    "pgd/adaptive": "PGD",
    "sigma/adaptive": "adaptive SIGMA",
    "sigma/transfer": "transferred SIGMA",
    "worst/all": "all attacks at once",
    COMBINED: "mean of all",
    OTHERS: "mean without SIGMA",
}
_AGAINST = {
    CLEAN: "the clean control",
    GAUSSIAN: "the best Gaussian noise",
    REFERENCE: "the settings above",
    WITHOUT_SIGMA: "the same without SIGMA",
}
_MEANS = (COMBINED, OTHERS)
_VERDICTS = {1: "significantly higher in", -1: "significantly lower in", 0: "not significantly different in"}


def row(name: str) -> str:
    """Return the name of a training for people."""
    return _ROWS.get(name, name)


def column(name: str) -> str:
    """Return the name of a condition for people."""
    return _CONDITIONS[name]


def shown(found: dict[str, Any]) -> list[str]:
    """Return the conditions of a result that the page shows."""
    have = {cell["condition"] for cell in found["tables"][SAMPLES]["cells"]}
    return [name for name in _CONDITIONS if name in have]


def percent(interval: dict[str, float]) -> str:
    """Return an accuracy in percent with its interval."""
    mean, low, high = (text.percent(interval[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low}{text.DASH}{high})"


def points(interval: dict[str, float]) -> str:
    """Return a difference in percentage points with its interval."""
    mean, low, high = (text.points(interval[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def bold(interval: dict[str, float] | None) -> str:
    """Return a difference in bold if it is significant, or "not measured"."""
    if interval is None:
        return "not measured"
    return f"**{points(interval)}**" if sign(interval) else points(interval)


def sign(found: dict[str, float]) -> int:
    """Return 1 where a difference is significantly above zero, -1 where it is below, else 0."""
    return 0 if found["p_holm"] >= LEVEL else 1 if found["mean"] > 0 else -1


def correct(found: dict[str, Any]) -> dict[str, Any]:
    """Return a result whose differences have p-values corrected by Holm's method.

    A family is what one table compares with one of its rows.
    """
    for table in found["tables"].values():
        for entry, p in zip(table["differences"], holm_of(table["differences"]), strict=True):
            entry["p_holm"] = p
    return found


def difference(table: Table, regime: str, against: str, condition: str) -> dict[str, float] | None:
    """Return the difference of a row from another, or None where it was not measured."""
    wanted = (regime, against, condition)
    entries = (e for e in table["differences"] if (e["row"], e["against"], e["condition"]) == wanted)
    return next(entries, None)


def short(every: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """Yield the rows of the first table: mean accuracy with SIGMA training minus that with other training."""
    others = (CLEAN, GAUSSIAN, "fgsm")
    yield ["images", "SIGMA samples", *(f"over {_AGAINST.get(name, f'{row(name)} training')}" for name in others)]
    for found in every:
        for name in (SAMPLES, TIME):
            table = found["tables"][name]
            for regime in (each for each in (REFERENCE, TRANSFER) if _has(table, each)):
                cells = [" / ".join(bold(difference(table, regime, o, mean)) for mean in _MEANS) for o in others]
                yield [found["dataset"]["title"], f"{row(regime).removeprefix('SIGMA ')}, {TABLES[name]}", *cells]


def conclusions(found: dict[str, Any]) -> Iterator[str]:
    """Yield the sentences on one dataset."""
    pairs = [(regime, against) for against in (CLEAN, GAUSSIAN) for regime in WITH_SIGMA]
    for name in (SAMPLES, TIME):
        table = found["tables"][name]
        for regime, against in [*pairs, (MIXTURE, WITHOUT_SIGMA)]:
            if _has(table, regime) and _has(table, against):
                yield _effect(table, TABLES[name], regime, against, shown(found))
    yield from _variations(found["tables"][VARIATIONS])
    yield _trust(found)
    yield from _samples(found["tables"][SAMPLES])
    for entry in found["sweep"]:
        tried = [each["std"] for each in entry["rows"]]
        if entry["best"] in (min(tried), max(tried)):
            end, other = ("largest", "larger") if entry["best"] == max(tried) else ("smallest", "smaller")
            best = f"The std of the best Gaussian noise, {entry['best']:g}, is the {end} value tried"
            yield f"{best}; a {other} one might be better."


def _has(table: Table, name: str) -> bool:
    return any(entry["name"] == name for entry in table["rows"])


def _effect(table: Table, title: str, regime: str, against: str, columns: list[str]) -> str:
    parts: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for name in columns:
        found = difference(table, regime, against, name)
        if found is not None and name not in _MEANS:
            parts[sign(found)].append(column(name) + (f" {points(found)}" if sign(found) else ""))
    verdicts = [f"{verdict} {', '.join(parts[key])}" for key, verdict in _VERDICTS.items() if parts[key]]
    return f"{row(regime)}, {title}, against {_AGAINST[against]}: {'; '.join(verdicts)}."


def _variations(table: Table) -> Iterator[str]:
    known = (CLEAN, GAUSSIAN, REFERENCE, "base")
    names = [entry["name"] for entry in table["rows"] if entry["name"] not in known]
    for against in (REFERENCE, GAUSSIAN, CLEAN):
        parts: dict[int, list[str]] = {1: [], -1: [], 0: []}
        for name in names:
            found = difference(table, name, against, OTHERS)
            if found is not None:
                parts[sign(found)].append(f"{name} {points(found)}")
        better, worse = (f"{len(p)}" + (f" ({'; '.join(p)})" if p else "") for p in (parts[1], parts[-1]))
        yield (
            f"Variations of SIGMA on the fly against {_AGAINST[against]}, by the mean without SIGMA's own condition: "
            f"{better} of {len(names)} significantly better, {worse} significantly worse, {len(parts[0])} not "
            "significantly different."
        )


def _trust(found: dict[str, Any]) -> str:
    cells = [
        cell for name in (SAMPLES, TIME) for cell in found["tables"][name]["cells"] if cell["condition"] not in _MEANS
    ]
    flagged = sum(bool(cell["flags"]) for cell in cells)
    low = sum(not cell["above_chance"] for cell in cells)
    missed = [c["unconverged"] for c in cells if c["condition"] == "sigma/adaptive" and c["unconverged"] is not None]
    found = (
        f"Of {len(cells)} cells of the first two tables, {flagged} have a flag that says why they may be too high, and "
        f"{low} are not significantly above chance ({cells[0]['chance']:.0%})."
    )
    if not missed:
        return found
    shares = f"{min(missed):.0%} to {max(missed):.0%}"
    return f"{found} {shares} of SIGMA's adaptive walks did not converge, so this column is an upper bound."


def _samples(table: Table) -> Iterator[str]:
    walked = [entry for entry in table["rows"] if entry.get("converged") is not None]
    if walked:
        parts = [f"{row(e['name'])} {e['converged']:.0%} (in {e['walk_steps']:.0f} steps)" for e in walked]
        yield (
            f"Share of SIGMA training samples that reached the target confidence: {', '.join(parts)}; the rest were "
            "stopped early and are weaker than the paper's samples."
        )
