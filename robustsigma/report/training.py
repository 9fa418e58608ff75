"""The tables of a robustness report about training: the sweep of its noise, and the samples that were made for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robustsigma.report import text
from robustsigma.report.table import Exhibit, TableCell, TableLayout, difference_cell, headings, listing, mean_cell
from robustsigma.report.text import DASH, number, percent

HELD_OUT = {"val": "the validation split", "train": "the training images, left out of every training of the sweep"}
CHOSEN_BY = {
    "mean": ("Mean", "the accuracy averaged over the columns"),
    "worst": ("Worst case", "the share of images classified correctly under every column"),
}
_CACHE = {
    "hit_rate": ("From the cache, %", percent),
    "mean_age": ("Mean age, epochs", number),
    "expired": ("Too old, %", percent),
    "stale": ("Stale, %", percent),
}


def sweeps(results: dict[str, Any]) -> list[Exhibit]:
    """Return the sweep of the training noise of each regime: one table with a row for each standard deviation.

    Args:
        results: what an evaluation measured, of which only the part `sweep` is read.
    """
    return [_sweep(entry, place) for place, entry in enumerate(results.get("sweep") or [])]


def _sweep(entry: dict[str, Any], place: int) -> Exhibit:
    title = text.regime_name(text.name(entry["name"]), str(entry.get("protocol")))
    by, part = str(entry.get("by")), str(entry.get("held_out"))
    name, meaning = CHOSEN_BY.get(by, (by, by))
    columns = [head for _, head in headings(entry["columns"])]
    settings = [str(column.get("attack_setting", "none")) for column in entry["columns"]]
    labels = [head.label + f" {kind}" * (kind != "none") for head, kind in zip(columns, settings, strict=True)]
    rows = []
    for row in entry["rows"]:
        behind = row.get("behind") or {}
        estimates = [*(row["accuracy"].get(head.id) for head in columns), row.get("score")]
        cells = [*(mean_cell(found, percent) for found in estimates), difference_cell(behind)]
        cells.append(TableCell(text.duration(row.get("seconds"))))
        tone, mark = ("better", " \u25b2 best") if row.get("best") else ("", "")
        rows.append((number(row["std"]) + mark, *(replace(cell, tone=tone) for cell in cells)))
    table = listing(("Std", *labels, name, "Against the best", "Training"), (title, "", rows))
    lead = (
        f"{title}: trained with seed {entry.get('seed', DASH)}, evaluated on {number(entry.get('images'))} images of "
        f"{HELD_OUT.get(part, part)}; the best by {name.lower()}, {meaning}."
    )
    alt = "Accuracy in each column over the standard deviation of the training noise"
    table = replace(table, title=f"Std of the Gaussian noise for training, accuracy in %: {title}")
    return Exhibit("", lead, (table,), "sweep" if place == 0 else "", alt)


def training_samples(results: dict[str, Any], names: dict[str, str]) -> TableLayout:
    """Return how many samples were made for training, how many converged, and how many came from a sample cache."""
    heads = ("Model", "Seed", "Samples", "Converged, %", "Mean steps", "Time", *(head for head, _ in _CACHE.values()))
    rows = []
    for entry in results.get("augmentation") or []:
        cache = (write((entry.get("cache") or {}).get(key)) for key, (_, write) in _CACHE.items())
        made = (number(entry.get("samples")), percent(entry.get("converged")), number(entry.get("steps")))
        name, seconds = names.get(entry["regime"], entry["regime"]), text.duration(entry.get("seconds"))
        rows.append((name, entry.get("seed", DASH), *made, seconds, *cache))
    return listing(heads, ("", "", rows))
