"""Which orders of two methods hold under every protocol, which under some, and which contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from robustsigma.benchmarking.protocols import PROTOCOLS, protocol
from robustsigma.benchmarking.table import MetricColumn, ScoreTable
from robustsigma.engine.metrics import significance
from robustsigma.report import text

EVERY, SOME, CONTRADICTED, UNDECIDED = "every", "some", "contradicted", "undecided"


def protocol_columns(table: ScoreTable) -> dict[str, list[MetricColumn]]:
    """Return, for each protocol of a table, the columns by which it ranks methods."""
    known = {column.metric.name: column for column in table.columns}
    found = {
        name: [known[quantity] for quantity in map(listed.quantity, listed.ranks_by) if quantity in known]
        for name, listed in PROTOCOLS.items()
    }
    return {name: columns for name, columns in found.items() if columns}


def rankings(model: str, table: ScoreTable) -> Iterator[dict[str, Any]]:
    """Yield an entry for each pair of methods, controls among them, if protocols were measured.

    A protocol is for an order if the first method is significantly better in at least one of the quantities by which
    the protocol ranks, and against it if it is significantly worse in one; it may be both. The comparisons of all pairs
    in all these quantities are one family for Holm's correction. A quantity that cannot distinguish any method from
    random maps has no say. A protocol without a value of a pair does not count.

    Args:
        model: its name.
        table: what was measured.

    Yields:
        `model`; `first` and `second`, the methods, such that no more protocols are against the order than for it;
        `verdict`: "every" if all protocols are for it and none is against it, "some" if none is against it,
        "contradicted" if some are for and some against it, "undecided" if no protocol is either; `for` and `against`:
        ids of the metrics; `protocols`: "for", "against", "both" or "undecided" by name.
    """
    columns = [(name, column) for name, ranked in protocol_columns(table).items() for column in ranked]
    informative = {column.metric.name for _, column in columns if table.is_informative(column)}
    pairs = list(combinations(table.arrays, 2)) if columns else []
    gains = {
        (pair, name, column.metric.name): gain
        for pair in pairs
        for name, column in columns
        if (gain := table.advantage(*pair, column)) is not None
    }
    counted = [key for key in gains if key[2] in informative]
    signs = dict(zip(counted, significance([gains[key] for key in counted]), strict=True))
    for pair in pairs:
        mine = [(n, c.metric.name) for n, c in columns if (pair, n, c.metric.name) in gains]
        found = {key: signs.get((pair, *key), 0) for key in mine}
        first, second = pair
        sides = {name: {sign for (of, _), sign in found.items() if of == name and sign} for name, _ in mine}
        balance = sum(sum(side) for side in sides.values())
        if balance < 0 or (balance == 0 and sum(found.values()) < 0):
            first, second = second, first
            found = {key: -sign for key, sign in found.items()}
            sides = {name: {-sign for sign in side} for name, side in sides.items()}
        yield {
            "model": model,
            "first": first,
            "second": second,
            "verdict": _verdict(sides),
            "for": [metric for (_, metric), sign in found.items() if sign > 0],
            "against": [metric for (_, metric), sign in found.items() if sign < 0],
            "protocols": {name: _side(side) for name, side in sides.items()},
        }


def _verdict(sides: Mapping[str, set[int]]) -> str:
    if any(-1 in side for side in sides.values()):
        return CONTRADICTED  # the order is such that a protocol is for it
    if sides and all(1 in side for side in sides.values()):
        return EVERY
    return SOME if any(sides.values()) else UNDECIDED


def _side(signs: set[int]) -> str:
    return "both" if len(signs) == 2 else {1: "for", -1: "against", 0: "undecided"}[sum(signs)]


def protocol_entries(table: ScoreTable, step: int | None, width: int) -> list[dict[str, Any]]:
    """Return the protocols of a table for its results: what each is and how paper, code and package differ.

    Args:
        table: scores of one model.
        step: pixels that curves replaced at a time; None is the protocols' own step, the width of the images.
        width: width of the images.
    """
    changed = _changed_protocols(table, step, width)
    other = f" Not as the protocol: curves replaced {step} pixels at a time here."
    return [
        {
            "id": name,
            "source": PROTOCOLS[name].source,
            "ranks_by": [column.metric.name for column in columns],
            "differences": PROTOCOLS[name].differences + other * (name in changed),
        }
        for name, columns in protocol_columns(table).items()
    ]


def _changed_protocols(table: ScoreTable, step: int | None, width: int) -> list[str]:
    """Return the protocols of a table whose curves had another step than their own."""
    if step in (None, width):
        return []
    return [name for name in protocol_columns(table) if protocol(name, step) != protocol(name)]


def step_findings(table: ScoreTable, step: int | None, width: int) -> list[str]:
    """Return a sentence if curves had another step than their protocols'; arguments as of `protocol_entries`."""
    changed = _changed_protocols(table, step, width)
    names = ", ".join(changed)
    return [f"Curves of {names} replaced {step:,} pixels at a time, not one row of {width:,}."] if changed else []


def ranking_findings(entries: list[dict[str, Any]]) -> list[str]:
    """Return a sentence about each model: how many orders hold, and how many are contradicted."""
    models = dict.fromkeys(entry["model"] for entry in entries)
    found = []
    for model in models:
        mine = [entry for entry in entries if entry["model"] == model]
        count = {kind: sum(e["verdict"] == kind for e in mine) for kind in (EVERY, SOME, CONTRADICTED, UNDECIDED)}
        protocols = len({name for entry in mine for name in entry["protocols"]})
        found.append(
            (f"{model}: of " if len(models) > 1 else "Of ")
            + f"{text.count(len(mine), 'pair')} of methods, controls among them, {count[EVERY]} "
            + f"{'has' if count[EVERY] == 1 else 'have'} the same order under all {protocols} protocols, {count[SOME]} "
            + f"under some while the others are undecided; protocols contradict each other on {count[CONTRADICTED]}, "
            + f"and {count[UNDECIDED]} {'is' if count[UNDECIDED] == 1 else 'are'} undecided."
        )
    return found
