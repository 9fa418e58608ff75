"""What a map takes against how good it is."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from robustsigma.report.attribution import board as boards
from robustsigma.report.attribution.board import Board, Metric
from robustsigma.report.attribution.lines import grid, looks, name_points
from robustsigma.report.canvas import label

QUALITIES = ("difference", "sic", "iou")
PASSES = ("forwards", "backwards")


def draw_cost(results: dict[str, Any], board: Board) -> Figure | None:
    """Draw what a map takes against how good it is, one panel a metric."""
    spent, unit = _spent(board)
    chosen = [metric for metric in _qualities(board) if len(_points(board, metric, spent)) > 1]
    if not chosen:
        return None
    figure = Figure(figsize=(12, 3.3 * len(chosen)))
    axes = figure.subplots(len(chosen), 1, squeeze=False, gridspec_kw={"hspace": 0.36}).ravel()
    styles, names = looks(boards.methods(results)), boards.names(results)
    for axis, metric in zip(axes, chosen, strict=True):
        _scatter(figure, axis, board, metric, spent, styles, names)
        axis.set_xlabel(f"{unit} (logarithmic)", fontsize=8.5)
    return figure


def _qualities(board: Board) -> list[Metric]:
    """Return the metrics to set against the cost: the usual three, or the first of each group."""
    usual = [metric for key in QUALITIES for metric in board.metrics if metric.id == key]
    return usual or [metrics[0] for _, _, metrics in board.groups() if metrics[0].group != "cost"]


def _spent(board: Board) -> tuple[dict[str, float], str]:
    """Return what one map of each method takes, and in what unit."""
    present = [key for key in PASSES if any(key == metric.id for metric in board.metrics)]
    keys, unit = (
        (present, "passes forward and backward for one map") if present else (["seconds"], "seconds for one map")
    )
    if len(present) == 1:
        unit = f"passes {present[0].removesuffix('s')} for one map"
    found = {}
    for method in board.rows:
        values = [board.cells[method.id, key].value("mean") for key in keys if (method.id, key) in board.cells]
        known = [value for value in values if value is not None]
        if known and len(known) == len(keys) and sum(known) >= 0:
            found[method.id] = sum(known)
    return found, unit


def _points(board: Board, metric: Metric, spent: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return cost and quality of the methods that have both; no pass at all is drawn left of the others."""
    floor = min((value for value in spent.values() if value > 0), default=1.0)
    found = {}
    for key, value in spent.items():
        cell = board.cells.get((key, metric.id))
        mean = None if cell is None else cell.value("mean")
        if mean is not None:
            found[key] = (value or floor / 2, mean)
    return found


def _scatter(figure: Figure, axis: Any, board: Board, metric: Metric, spent: dict[str, float],
             styles: dict[str, Any], names: dict[str, str]) -> None:  # fmt: skip
    """Draw one panel: points with intervals, and the line that joins those that nothing cheaper beats."""
    points = _points(board, metric, spent)
    axis.set_xscale("log")
    for key, (x, y) in points.items():
        cell, style = board.cells[key, metric.id], styles[key]
        low, high = cell.value("low"), cell.value("high")
        if low is not None and high is not None:
            axis.plot([x, x], [low, high], color=style["color"], linewidth=1, alpha=0.55, zorder=2)
        edge = 1.2 if style["marker"] in ("x", "+") else 0
        axis.plot([x], [y], linestyle="none", marker=style["marker"], color=style["color"], markersize=6, zorder=3,
                  markeredgewidth=edge)  # fmt: skip
    sign = -1 if metric.better == "lower" else 1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points.values(), key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    axis.plot(*zip(*front, strict=True), color="#b8c2cc", linewidth=1, zorder=1, drawstyle="steps-post")
    axis.set_title(f"{label(metric.title, 40)} {metric.arrow}", fontsize=10, fontweight="bold", loc="left", pad=6)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.08, y=0.1)
    grid(axis)
    axis.autoscale_view()
    spans = [
        (x, cell.value("low"), cell.value("high"))
        for cell, x in ((board.cells[key, metric.id], x) for key, (x, _) in points.items())
    ]
    named = [names[key] + (" (0)" if spent[key] == 0 else "") for key in points]
    name_points(figure, axis, list(points.values()), named, 8, spans)
