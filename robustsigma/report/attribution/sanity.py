"""The check by randomised parameters: a map that stays the same does not explain the network."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from robustsigma.report import text
from robustsigma.report.attribution import board as boards
from robustsigma.report.attribution.board import Board
from robustsigma.report.attribution.lines import grid
from robustsigma.report.canvas import INK, LINE, QUIET, WRONG, label


def draw_sanity(results: dict[str, Any], board: Board) -> Figure | None:
    """Draw how alike the maps stay when the parameters are randomised, the least alike first."""
    rows = [row for row in sanity_rows(results, board) if row["mean"] is not None]
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 0.27 * len(rows) + 0.75))
    axis = figure.subplots()
    axis.axvline(0, color="#b8c2cc", linewidth=1)
    for y, row in enumerate(rows):
        colour = WRONG if not row["changed"] else QUIET if row["control"] else LINE
        if row["low"] is not None and row["high"] is not None:
            axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2.4, alpha=0.45, solid_capstyle="butt")
        axis.plot(
            [row["mean"]], [y], marker="o" if row["changed"] else "X", color=colour, markersize=5.5, linestyle="none"
        )
    named = [label(row["label"], 30) for row in rows]
    axis.set_yticks(range(len(rows)), named, fontsize=8.5)
    for tick, row in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_color(WRONG if not row["changed"] else QUIET if row["control"] else INK)
    axis.set(ylim=(len(rows) - 0.4, -0.6))
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.1), max(high, 1.0 if high > 0.5 else high))
    axis.set_xlabel("rank correlation with the map of the trained network", fontsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    grid(axis)
    return figure


def sanity_rows(results: dict[str, Any], board: Board) -> list[dict[str, Any]]:
    """Return the sanity check of one model, the least alike first, those without a number last.

    Args:
        results: what the benchmark measured.
        board: of the model.

    Returns:
        One dict a method: label, control, mean, low, high, n, changed, skipped.
    """
    known = {method.id: method for method in boards.methods(results)}
    rows = []
    for entry in results.get("sanity") or []:
        if entry["model"] == board.model["id"]:
            found, method = entry.get("similarity") or {}, known.get(entry["method"])
            rows.append({
                "label": method.label if method else text.printable(entry["method"]),
                "control": bool(method and method.control),
                **{key: text.finite(found.get(key)) for key in ("mean", "low", "high")},
                "n": found.get("n"),
                "changed": entry.get("changed") is not False,
                "skipped": entry.get("skipped") or {},
            })  # fmt: skip
    return sorted(rows, key=lambda row: math.inf if row["mean"] is None else row["mean"])
