"""Sections of a robustness report about single attacks: AutoAttack step by step, and minimum-norm attacks."""

from __future__ import annotations

from typing import Any

from robustsigma.report import text
from robustsigma.report.table import Exhibit, Heading, TableCell, TableLayout, listing, mean_cell
from robustsigma.report.text import interval, measure, number, percent

QUALITY = {
    "rmse": ("RMSE", "root mean square change of a pixel; 0 is no change"),
    "linf": ("L\u221e", "largest change of any pixel"),
    "ssim": ("SSIM", "structural similarity; 1 is the same image"),
}
_PASSES = "Forward + backward passes"


def threats(results: dict[str, Any], settings: list[tuple[Heading, str]]) -> list[Exhibit]:
    """Return what each condition does: its threat model, the change of the images and its passes; and its parameters.

    Older results have settings only.
    """
    entries, rows, details = {entry["id"]: entry for entry in results["conditions"]}, [], []
    base = next((entry["id"] for entry in results["regimes"]), None)
    taken = {entry["condition"]: entry.get("passes") for entry in results["cells"] if entry["regime"] == base}
    for head, setting in settings:
        threat, known = entries[head.id].get("threat") or {}, entries[head.id].get("parameters")
        parameters = text.parameters(known or {}) if known else head.hint
        details += [(head.label, setting, parameters)] * bool(parameters)
        words = [str(threat.get(key) or text.DASH) for key in ("norm", "knowledge", "goal")]
        changes = (mean_cell((entries[head.id].get("quality") or {}).get(key), measure) for key in QUALITY)
        numbers = text.radius(threat.get("eps")), *changes, number(taken.get(head.id))
        rows.append((head.label, setting, words[0], *numbers, *words[1:]))
    titles = [title for title, _ in QUALITY.values()]
    columns = ("Condition", "Setting", "Norm", "eps", *titles, _PASSES, "Knowledge", "Goal")
    tables = [listing(columns, ("", "", rows), words={*columns} - {"eps", *titles, _PASSES})]
    if details:  # sentences, which need the width of the page
        heads = ("Condition", "Setting", "Parameters")
        tables.append(listing(heads, ("", "", details), words={*heads}))
    return [Exhibit(tables=tuple(tables))] * bool(rows)


def attack_by_attack(results: dict[str, Any], table: TableLayout, names: dict[str, str]) -> list[Exhibit]:
    """Return for each AutoAttack the accuracy of each model after each of its attacks.

    Args:
        results: results of an evaluation.
        table: its table of accuracies.
        names: name of each model by id.
    """
    shown = []
    for head in table.column_heads:
        found = {e["regime"]: e for e in results["cells"] if e["condition"] == head.id and e.get("attacks")}
        if not found:
            continue
        columns, rows = list(next(iter(found.values()))["attacks"]), []
        for regime, name in names.items():
            if regime in found:
                accuracies = (percent(found[regime]["attacks"].get(column)) for column in columns)
                rows.append((name, *accuracies, number(found[regime].get("passes"))))
        after = [column if place == 0 else f"after {column}" for place, column in enumerate(columns)]
        layout = listing(("Model", *after, f"{_PASSES} per image"), ("", "", rows))
        shown.append(Exhibit(head.label, head.hint, tables=(layout,)))
    return shown


def distances(results: dict[str, Any], table: TableLayout, names: dict[str, str]) -> list[Exhibit]:
    """Return the curves of minimum-norm attacks, and a table with median distance and area; arguments as above."""
    entries, labels = results.get("distances") or [], {head.id: head.label for head in table.column_heads}
    rows = [
        ((names[e["regime"]], labels[e["condition"]]), e.get("norm") or text.DASH, number(e.get("n")),
         mean_cell(e.get("median"), measure), mean_cell(e.get("area"), percent), measure(e["radii"][-1]),
         mean_cell(e.get("misled"), percent))
        for e in entries if e["regime"] in names and e["condition"] in labels
    ]  # fmt: skip
    heads = ("Model", "Norm", "Images", "Median distance", "Area, %", "up to radius", "Misled at any distance, %")
    layout = listing(heads, ("", "", rows), words={"Norm"})
    alt = "Accuracy over the radius for each minimum-norm attack, a line for each model"
    return [Exhibit(tables=(layout,), picture="distances", alt=alt)] if rows else []


def distance_cell(entry: dict[str, Any], flags: tuple[tuple[str, str], ...]) -> TableCell:
    """Return the cell of a minimum-norm attack in the table of accuracies: a distance instead of an accuracy."""
    misled = percent((entry.get("misled") or {}).get("mean"))
    middle = text.finite((entry.get("median") or {}).get("mean"))
    shown = "no median" if middle is None else f"{entry.get('norm') or ''} {measure(middle)}"
    details = (f"{misled}% misled",) if middle is None else interval(entry["median"], measure)
    return TableCell(shown, details, hint=f"{misled}% are misled at any distance", flags=flags)


def with_own_group(conditions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the conditions with the setting "distance" for those that are minimum-norm attacks."""
    return [{**each, "attack_setting": "distance"} if each.get("minimum_norm") else each for each in conditions]


def measured_on(results: dict[str, Any]) -> tuple[str, ...]:
    """Return on how many images the curves were measured, which may be fewer than the table has."""
    counts = sorted({entry["n"] for entry in results.get("curves") or [] if entry.get("n")})
    shown = " to ".join(dict.fromkeys(number(count) for count in (*counts[:1], *counts[-1:])))
    return (f"Measured on {shown} test images.",) if counts else ()
