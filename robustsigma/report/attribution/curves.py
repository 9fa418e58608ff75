"""The curves behind the scores, one panel a curve."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import text
from robustsigma.report.attribution import board as boards
from robustsigma.report.attribution.board import Board
from robustsigma.report.attribution.lines import grid, looks
from robustsigma.report.canvas import QUIET, floats, label


def draw_curves(results: dict[str, Any], board: Board) -> Figure | None:
    """Draw one panel a curve, each with its methods listed by their scores in the table, the best first.

    A curve that no metric of the table is named after has them listed by the area under their lines.
    """
    mine = [(curve, [line for line in curve["lines"] if line["model"] == board.model["id"]])
            for curve in results.get("curves") or []]  # fmt: skip
    mine = [(curve, lines) for curve, lines in mine if lines]
    if not mine:
        return None
    across = min(len(mine), 2)
    down = math.ceil(len(mine) / across)
    most = max(len(lines) for _, lines in mine)
    figure = Figure(figsize=(6.1 * across, max(2.7, 0.19 * most + 0.55) * down))
    outer = figure.add_gridspec(down, across, wspace=0.13, hspace=0.36, left=0.05, right=0.99)
    styles, names = looks(boards.methods(results)), boards.names(results)
    better = {metric.id: metric.better for metric in board.metrics}
    for place, (curve, lines) in enumerate(mine):
        alone = place == len(mine) - 1 and place % across == 0 and across > 1
        cell = outer[place // across, :] if alone else outer[place // across, place % across]
        parts = cell.subgridspec(1, 2, width_ratios=(4 if alone else 1.3, 1), wspace=0.03)
        lower = better.get(curve["id"]) == "lower"
        tabled = curve["id"] in better
        scores = [_score(board, curve, line) if tabled else text.finite(line.get("auc")) for line in lines]
        ranked = sorted(
            zip(scores, lines, strict=True),
            key=lambda pair: math.inf if pair[0] is None else pair[0] * (1 if lower else -1),
        )
        _panel(figure.add_subplot(parts[0]), curve, [line for _, line in ranked], styles)
        head = f"{'as in the table' if tabled else 'area'}, {'low' if lower else 'high'} is good"
        entries = [(styles.get(line["method"], {}), names.get(line["method"], line["method"]), score)
                   for score, line in ranked]  # fmt: skip
        _legend(figure.add_subplot(parts[1]), head, entries)
    return figure


def _score(board: Board, curve: dict[str, Any], line: dict[str, Any]) -> float | None:
    """Return a method's score in the metric of the curve, which is no area of a median curve."""
    cell = board.cells.get((line["method"], curve["id"]))
    return None if cell is None else cell.value("mean")


def _panel(axis: Any, curve: dict[str, Any], lines: list[dict[str, Any]], styles: dict[str, Any]) -> None:
    """Draw the lines of one curve with their bands, the best on top."""
    x = floats(curve["x"])
    every = max(1, len(x) // 8)
    for height, line in enumerate(reversed(lines)):
        style, order = styles.get(line["method"], {}), 2 + height / len(lines)
        low, high = (floats(line.get(key) or [None] * len(x)) for key in ("low", "high"))
        axis.fill_between(x, low, high, color=style.get("color"), alpha=0.07, linewidth=0, zorder=1)
        axis.plot(x, floats(line["mean"]), linewidth=1.4, markersize=3.6, markevery=(height % every, every),
                  zorder=order, markeredgewidth=0.9 if style.get("marker") in ("x", "+") else 0, **style)  # fmt: skip
    if x.size and np.nanmin(x) > 0 and np.nanmax(x) / np.nanmin(x) >= 30:
        axis.set_xscale("log")
    axis.margins(x=0.015)
    middle = {str(line.get("centre") or "mean") for line in lines}
    side = label(curve.get("y_title") or "", 44) + (f" ({label(middle.pop())})" if middle == {"median"} else "")
    axis.set_title(label(curve["title"], 44), fontsize=10, fontweight="bold", loc="left", pad=6)
    axis.set_xlabel(label(curve.get("x_title") or "", 50), fontsize=8.5)
    room = axis.get_window_extent().height / axis.figure.dpi * 72  # in points, of which a letter takes about 4.6
    axis.set_ylabel("\n".join(textwrap.wrap(side, max(12, int(room / 4.6)), break_long_words=False)), fontsize=8.5)
    axis.tick_params(labelsize=8)
    grid(axis)


def _legend(axis: Any, head: str, entries: list[tuple[dict[str, Any], str, Any]]) -> None:
    """List the methods with their lines and scores."""
    axis.axis("off")
    step = 1 / (len(entries) + 1)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.text(0.23, 1 - step / 2, label(head, 30), fontsize=7.2, color=QUIET, va="center")
    for row, (style, name, score) in enumerate(entries, 1):
        y = 1 - (row + 0.5) * step
        axis.plot([0.02, 0.085, 0.15], [y] * 3, linewidth=1.4, markersize=3.6, markevery=[1],
                  markeredgewidth=0.9 if style.get("marker") in ("x", "+") else 0, **style)  # fmt: skip
        axis.text(0.36, y, text.score(score), fontsize=7.4, va="center", ha="right")
        axis.text(0.39, y, label(name, 25), fontsize=7.4, va="center")
