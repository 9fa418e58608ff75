"""The HTML file of the report: what the template shows, and how it reaches the disk."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from robustsigma.report import figures, matrix, page, sweep, text, trust

FIGURES = ("matrix", "curves", "sweep", "examples", "path", "explanations")
_TIED = 4  # regimes that a tile names
QUALITY = (
    ("rmse", "RMSE", "root mean square change of a pixel; 0 is no change"),
    ("linf", "L\u221e", "greatest change of any pixel"),
    ("ssim", "SSIM", "structural similarity; 1 is the same image"),
)


def write(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write the report and its figures; see `robustsigma.report.write_report`."""
    pictures = figures.draw(results, arrays)
    return page.publish(render(results, pictures), pictures, Path(out), FIGURES)


def render(results: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Return the report as one HTML text.

    Args:
        results: what the evaluation measured (schema 1).
        pictures: PNG files by name, as `figures.draw` returns them.
    """
    return page.render("robustness.html.j2", view(results), pictures)


def view(results: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows."""
    found = matrix.build(results)
    return {
        **page.common(results, seeds=results.get("seeds") or []),
        "matrix": found,
        "seeds": results.get("seeds") or [],
        "flags": _flags(results),
        "tiles": _tiles(found),
        "changes": changes(results, found),
        "quality": _quality(results, found),
        "quality_names": QUALITY,
        "threats": trust.threats(results, found),
        "checks": trust.checks(results, found),
        "checked_against": trust.OTHERS,
        "networks": trust.networks(results, found),
        "calibrated": trust.calibrated(found),
        "sweep": sweep.build(results),
        "augmentation": _augmentation(results, found),
        "banked": any(entry.get("bank") for entry in results.get("augmentation") or []),
        "per_seed": _per_seed(results, found),
        "explained": [_explained(method) for method in results.get("explanations") or []],
        "path": results.get("path"),
        "path_class": _path_class(results),
        "seconds": {entry["id"]: entry.get("seconds") for entry in results["regimes"]},
    }


def _flags(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the flags of the run; a single seed is always said."""
    flags = text.flags(results)
    if matrix.one_seed_unsaid(results):
        flags.insert(0, ("1 seed", "every regime was trained once: how results vary between trainings is not known"))
    return flags


def _tiles(found: matrix.Matrix) -> list[tuple[str, str, str, str]]:
    """Return the few numbers that the page opens with: title, number, its unit, what it is."""
    base = [head for head in found.regimes if head.group == "none"]
    clean = next((head for head in found.conditions if head.group == "none"), None)
    attacks = [head for head in found.conditions if head.group == "adaptive"]
    tiles = []
    if base and clean and found.mean(base[0].id, clean.id) is not None:
        tiles.append((f"{base[0].label} model, {clean.label}", found.mean(base[0].id, clean.id), "without an attack"))
    worst: dict[str, tuple[float, str]] = {}
    every = [head for head in found.conditions if head.group == "worst"][:1]  # balls come before all attacks together
    for regime in found.regimes:
        together = found.mean(regime.id, every[0].id) if every else None
        if together is not None:
            worst[regime.id] = (together, every[0].settings)
            continue
        values = {head.label: found.mean(regime.id, head.id) for head in attacks}
        measured = {label: value for label, value in values.items() if value is not None}
        if measured and len(measured) == len(attacks):
            lowest = min(measured, key=lambda label: measured[label])
            worst[regime.id] = (measured[lowest], f"adaptive {lowest}, the lowest of {len(attacks)}")
    if base and base[0].id in worst:
        value, attack = worst[base[0].id]
        tiles.append((f"{base[0].label} model, worst case", value, attack))
    trained = [head for head in found.regimes if head.group != "none" and head.id in worst]
    if trained:
        value = max(worst[head.id][0] for head in trained)
        # Who leads by less than the digit shown is not told apart by the tile.
        best = [head.id for head in trained if text.percent(worst[head.id][0]) == text.percent(value)]
        names, attacked = [name_of(found, identity) for identity in best], sorted({worst[key][1] for key in best})
        if len(best) == 1:
            tiles.append((names[0], value, f"the best regime: {attacked[0]}"))
        else:
            rest = [text.count(len(names) - _TIED, "other")] if len(names) > _TIED else []
            hint = f"{'; '.join(names[:_TIED] + rest)} \u00b7 {' or '.join(attacked)}"
            tiles.append((f"{len(best)} best regimes, tied", value, hint))
    return [(title, text.percent(value), " %", hint) for title, value, hint in tiles]


def changes(results: dict[str, Any], found: matrix.Matrix) -> list[dict[str, Any]]:
    """Return the paired differences by control, each as rows by regime of cells by condition."""
    entries = results.get("differences") or []
    names = {head.id: head for head in found.regimes}
    spans = {head.id: _span([entry for entry in entries if entry["condition"] == head.id]) for head in found.conditions}
    blocks = []
    for against in dict.fromkeys(entry["against"] for entry in entries):
        mine = [entry for entry in entries if entry["against"] == against and entry["condition"] in spans]
        cells = {(entry["regime"], entry["condition"]): _change(entry, spans[entry["condition"]]) for entry in mine}
        rows = [head for head in found.regimes if any(key[0] == head.id for key in cells)]
        away = sum(cell["verdict"] != "same" for cell in cells.values())
        blocks.append(
            {
                "against": names.get(against),
                "id": against,
                "rows": rows,
                "cells": cells,
                "count": len(cells),
                "away": away,
            }
        )
    return blocks


def _span(entries: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the ends of a scale that holds zero and every interval."""
    found = [text.finite(entry.get(key)) for entry in entries for key in ("mean", "low", "high")]
    values = [0.01, -0.01, *(value for value in found if value is not None)]
    return min(values), max(values)


def _change(entry: dict[str, Any], span: tuple[float, float]) -> dict[str, Any]:
    """Return a difference with its place on a scale from 0 to 100, and whether its interval leaves zero out."""
    values = {key: text.finite(entry.get(key)) for key in ("mean", "low", "high")}
    low, high = values["low"], values["high"]
    verdict = "same"
    if low is not None and high is not None and (low > 0 or high < 0):
        verdict = "better" if low > 0 else "worse"
    places = {
        f"{key}_x": None if value is None else round(4 + 92 * (value - span[0]) / (span[1] - span[0]), 2)
        for key, value in {**values, "zero": 0.0}.items()
    }
    return {**values, **places, "n": entry.get("n"), "verdict": verdict}


def _quality(results: dict[str, Any], found: matrix.Matrix) -> list[tuple[matrix.Head, dict[str, Any]]]:
    """Return the image quality of the conditions that have one, in the matrix's order."""
    by_id = {entry["id"]: entry.get("quality") or {} for entry in results["conditions"]}
    return [(head, by_id[head.id]) for head in found.conditions if by_id[head.id]]


def _augmentation(results: dict[str, Any], found: matrix.Matrix) -> list[tuple[str, dict[str, Any]]]:
    """Return how the samples of training were made, by the name of the regime."""
    return [(name_of(found, entry["regime"]), entry) for entry in results.get("augmentation") or []]


def _per_seed(results: dict[str, Any], found: matrix.Matrix) -> list[tuple[str, Any, dict[str, Any]]]:
    """Return one row a regime and seed, in the matrix's order, with its accuracies by condition."""
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for entry in results.get("per_seed") or []:
        rows.setdefault((entry["regime"], entry["seed"]), {})[entry["condition"]] = entry.get("accuracy")
    order = [head.id for head in found.regimes]
    known = sorted(rows, key=lambda row: order.index(row[0]) if row[0] in order else len(order))
    return [(name_of(found, regime), seed, rows[regime, seed]) for regime, seed in known]


def name_of(found: matrix.Matrix, identity: str) -> str:
    """Return the name of a regime with its protocol."""
    head = next((head for head in found.regimes if head.id == identity), None)
    return identity if head is None else matrix.named(head.label, head.group)


def _explained(method: dict[str, Any]) -> dict[str, Any]:
    """Return how far one attribution method kept what it promises."""
    converged = [bool(value) for value in method.get("converged") or []]
    gaps = [abs(value) for value in map(text.finite, method.get("gap") or []) if value is not None]
    return {
        "method": method["method"],
        "converged": fmean(converged) if converged else None,
        "gap": median(gaps) if gaps else None,
        "largest": max(gaps) if gaps else None,
    }


def _path_class(results: dict[str, Any]) -> str:
    """Return the name of the class that the path works towards or against."""
    path, classes = results.get("path") or {}, (results.get("dataset") or {}).get("classes") or []
    target = path.get("target")
    return str(classes[target]) if isinstance(target, int) and 0 <= target < len(classes) else str(target)
