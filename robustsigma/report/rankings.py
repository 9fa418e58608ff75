"""The table of orders of two methods under published protocols, and the list of the protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from robustsigma.report import text
from robustsigma.report.table import Exhibit, TableLayout, listing
from robustsigma.report.text import DASH

_BANDS = {
    "every": ("Under every protocol", "each protocol says so in a quantity it ranks by, and none says the opposite"),
    "some": ("Under some protocols only", "the others are undecided"),
    "contradicted": ("Contradicted", "some protocols say so, others the opposite"),
}
_HEADS = ("Method", "is better than", "under", "worse under")


def exhibits(results: dict[str, Any], names: dict[str, str]) -> list[Exhibit]:
    """Return what the page's first section shows: for each model, the orders by how many protocols they hold under.

    Args:
        results: results of a benchmark; without protocols nothing is shown.
        names: names of the methods, by id.
    """
    entries, found = results.get("rankings") or [], []
    titles = {metric["id"]: text.printable(metric["title"]) for metric in results["metrics"]}
    for model in results["models"]:
        mine = [entry for entry in entries if entry["model"] == model["id"]]
        if mine:
            open_pairs = [entry for entry in mine if entry["verdict"] == "undecided"]
            label = {
                id: names.get(id, text.printable(id)) for entry in mine for id in (entry["first"], entry["second"])
            }
            remark = "; ".join(f"{label[entry['first']]} and {label[entry['second']]}" for entry in open_pairs)
            found.append(
                Exhibit(
                    text.printable(model["id"]) if len(results["models"]) > 1 else "",
                    tables=(_orders(mine, label, titles),),
                    remarks=(f"No protocol orders these significantly: {remark}.",) if remark else (),
                )
            )
    return found


def _orders(entries: list[dict[str, Any]], label: dict[str, str], titles: dict[str, str]) -> TableLayout:
    """Return one row for each method and set of protocols, with all methods that it is better than."""
    bands = []
    for verdict, (title, hint) in _BANDS.items():
        rows: dict[tuple[str, str, str], list[str]] = {}
        for entry in entries:
            if entry["verdict"] == verdict:
                inside, outside = (_under(entry, side, titles) for side in ("for", "against"))
                key = label[entry["first"]], inside, outside
                rows.setdefault(key, []).append(label[entry["second"]])
        ordered = sorted(rows.items(), key=lambda row: (-row[0][1].count(","), -len(row[1])))
        pairs = sum(map(len, rows.values()))
        cells = [(first, ", ".join(seconds), inside, outside) for (first, inside, outside), seconds in ordered]
        bands.append((f"{title}: {text.count(pairs, 'pair')}", hint, cells or [(DASH, DASH, DASH, DASH)]))
    return listing(_HEADS, *bands, words=_HEADS)


def _under(entry: dict[str, Any], side: str, titles: dict[str, str]) -> str:
    """Return the protocols on one side of an order, or, where there is another side, the quantities."""
    if entry["verdict"] == "contradicted":
        return ", ".join(titles.get(metric, metric) for metric in entry[side]) or DASH
    said = [text.printable(name) for name, which in entry["protocols"].items() if which == side]
    count = len(entry["protocols"])
    if said and len(said) == count:
        return f"all {count}" if count > 1 else said[0]
    return f"{len(said)} of {count}: {', '.join(said)}" if said else DASH


def lines(results: dict[str, Any], names: dict[str, str]) -> list[tuple[str, str]]:
    """Return the same for a terminal: for each model and band, each method and those that it is better than."""
    found = []
    for exhibit in exhibits(results, names):
        (table,) = exhibit.tables
        for band in table.rows:
            orders = (
                f"{head.label} over {table.cells[head.id, '0'].text}" for head in band.heads if head.label != DASH
            )
            found.append((f"{exhibit.title} {band.title}".strip(), "; ".join(orders) or "none"))
    return found


def protocols(results: dict[str, Any]) -> TableLayout:
    """Return the protocols: their source, what they rank by, and where paper, code and package differ."""
    titles = {metric["id"]: text.printable(metric["title"]) for metric in results["metrics"]}
    write: Callable[[Iterable[str]], str] = ", ".join
    rows = [
        (text.printable(e["id"]), e["source"], write(titles.get(m, m) for m in e["ranks_by"]), e["differences"])
        for e in results.get("protocols") or []
    ]
    heads = ("Protocol", "Source", "Ranks by", "Where paper, code and this report differ")
    return listing(heads, ("", "", rows), words=heads)
