"""What the report says of the attacks themselves: threat model, strength, gradients, calibration, curves."""

from __future__ import annotations

from typing import Any

from robustsigma.report import matrix, text

OTHERS = (
    ("twice", "Twice the steps"),
    ("search", "Search without gradients"),
    ("noise", "Noise of the same RMSE"),
    ("transfer", "Samples of the base model"),
)


def threats(results: dict[str, Any], found: matrix.Matrix) -> list[tuple[matrix.Head, dict[str, Any], str]]:
    """Return the threat model and all parameters of each condition, in the matrix's order.

    A result of an older version has no threat models: its settings stand for the parameters.
    """
    by_id = {entry["id"]: entry for entry in results["conditions"]}
    rows = []
    for head in found.conditions:
        entry = by_id[head.id]
        said = ", ".join(f"{key} = {value}" for key, value in text.flatten(entry.get("parameters") or {}) if key)
        threat = {"norm": None, "eps": None, "knowledge": None, "goal": None, **(entry.get("threat") or {})}
        rows.append((head, threat, said if entry.get("parameters") else head.settings))
    return rows


def checks(results: dict[str, Any], found: matrix.Matrix) -> list[tuple[matrix.Head, list[dict[str, Any]]]]:
    """Return by regime how strong each attack was beside others, `weak` where another surely found more errors."""
    entries = results.get("checks") or []
    labels = {head.id: head.label for head in found.conditions}
    blocks = []
    for regime in found.regimes:
        rows = []
        for entry in entries:
            if entry["regime"] == regime.id and entry["condition"] in labels:
                others = {key: _beside(entry.get(key)) for key, _ in OTHERS}
                rows.append({**entry, "label": labels[entry["condition"]], "others": others})
        if rows:
            blocks.append((regime, rows))
    return blocks


def _beside(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None:
        return None
    low = text.finite((part.get("difference") or {}).get("low"))
    return {**part, "weak": low is not None and low > 0}


def networks(results: dict[str, Any], found: matrix.Matrix) -> list[tuple[matrix.Head, dict[str, Any]]]:
    """Return what each regime's outputs and gradients are like, in the matrix's order."""
    by_id = {entry["regime"]: entry for entry in results.get("networks") or []}
    return [(head, by_id[head.id]) for head in found.regimes if head.id in by_id]


def calibrated(found: matrix.Matrix) -> list[matrix.Group]:
    """Return the columns of which a cell has a calibration error, by reading."""
    known = {condition for (_, condition), cell in found.cells.items() if cell.entry.get("calibration")}
    groups = []
    for group in found.columns:
        heads = tuple(head for head in group.heads if head.id in known)
        if heads:
            groups.append(matrix.Group(group.key, group.title, group.hint, heads))
    return groups


def curves(results: dict[str, Any], found: matrix.Matrix) -> dict[str, list[dict[str, Any]]]:
    """Return the curves of accuracy over eps by the id of a condition, those of known regimes, in their order."""
    order = [head.id for head in found.regimes]
    attacks = [head.id for head in found.conditions]
    every = [entry for entry in results.get("curves") or [] if entry["regime"] in order]
    every.sort(key=lambda entry: order.index(entry["regime"]))
    grouped = {attack: [entry for entry in every if entry["condition"] == attack] for attack in attacks}
    return {attack: entries for attack, entries in grouped.items() if entries}
