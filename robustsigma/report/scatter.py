"""Figures of points with intervals: quality against cost, and the check with shuffled parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from robustsigma.report import attribution, text
from robustsigma.report.canvas import FRAME, INK, LINE, QUIET, WRONG, grid, label, line_styles

_PASSES = ("forwards", "backwards")
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # of a point, where its name may stand


def cost(results: dict[str, Any], model: str) -> Figure | None:
    """Draw what one map costs against how good it is, one panel for each metric; None without two such methods."""
    scores, names = attribution.scores(results, model), attribution.names(results)
    spent, unit = _spent(results, scores)
    panels = []
    for metric in _qualities(results):
        points = _points(scores, metric["id"], spent)
        if len(points) > 1:
            panels.append((metric, points))
    if not panels:
        return None
    figure = Figure(figsize=(12, 3.3 * len(panels)))
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"hspace": 0.36}).ravel()
    styles = line_styles(names, attribution.controls(results))
    for axis, (metric, points) in zip(axes, panels, strict=True):
        _cost_panel(axis, metric, points, styles)
        axis.set_xlabel(f"{unit} (logarithmic)", fontsize=8.5)
        labels = [names[method] + (" (0)" if spent[method] == 0 else "") for method in points]
        name_points(figure, axis, [point[:2] for point in points.values()], labels)
    return figure


def _qualities(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics to compare with the cost: the usual three, or else the first of each group."""
    metrics = {metric["id"]: metric for metric in results["metrics"]}
    first = {metric["group"]: metric for metric in reversed(results["metrics"]) if metric["group"] != "cost"}
    return [metrics[key] for key in attribution.QUALITIES if key in metrics] or list(first.values())[::-1]


def _spent(results: dict[str, Any], scores: dict[tuple[str, str], dict[str, Any]]) -> tuple[dict[str, float], str]:
    """Return the cost of one map of each method, and its unit."""
    keys = [key for key in _PASSES if any(key == metric["id"] for metric in results["metrics"])]
    unit = "forward and backward passes for one map" if len(keys) == 2 else f"{''.join(keys)[:-1]} passes for one map"
    if not keys:
        keys, unit = ["seconds"], "seconds for one map"
    found = {}
    for method in attribution.names(results):
        values = [text.finite(scores.get((method, key), {}).get("mean")) for key in keys]
        known = [value for value in values if value is not None]
        if len(known) == len(keys) and sum(known) >= 0:
            found[method] = sum(known)
    return found, unit


def _points(
    scores: dict[tuple[str, str], dict[str, Any]], metric: str, spent: dict[str, float]
) -> dict[str, tuple[float, float, float | None, float | None]]:
    """Return cost, mean, low and high of each method that has them; a cost of zero is drawn left of all others."""
    floor = min((value for value in spent.values() if value > 0), default=1.0)
    found = {}
    for method, value in spent.items():
        entry = scores.get((method, metric), {})
        mean, low, high = (text.finite(entry.get(key)) for key in ("mean", "low", "high"))
        if mean is not None:
            found[method] = (value or floor / 2, mean, low, high)
    return found


def _cost_panel(axis: Any, metric: dict[str, Any], points: dict[str, Any], styles: dict[str, dict[str, Any]]) -> None:
    """Draw points with intervals, and the line through the methods that no cheaper one beats."""
    axis.set_xscale("log")
    for method, (x, y, low, high) in points.items():
        style = {**styles[method], "linestyle": "none"}
        if low is not None and high is not None:
            axis.plot([x, x], [low, high], color=style["color"], linewidth=1, alpha=0.55, zorder=2)
        axis.plot([x], [y], markersize=6, zorder=3, **style)
    sign = -1 if metric["better"] == "lower" else 1
    front: list[tuple[float, float]] = []
    for x, y, *_ in sorted(points.values(), key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    axis.plot(*zip(*front, strict=True), color=FRAME, linewidth=1, zorder=1, drawstyle="steps-post")
    title = f"{label(metric['title'], 40)} {attribution.arrow(metric)}"
    axis.set_title(title, fontsize=10, fontweight="bold", loc="left", pad=6)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.08, y=0.1)
    grid(axis)
    axis.autoscale_view()


def name_points(figure: Figure, axis: Any, points: list[tuple[float, float]], names: list[str]) -> None:
    """Write a name beside each point, where it covers as little as possible of the points and of other names.

    Points in a crowd are named first. The limits of the axis must be set.
    """
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    unit = figure.dpi / 72
    centers = axis.transData.transform(points)
    taken = [Bbox.from_bounds(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit) for x, y in centers]
    frame = axis.get_window_extent(renderer)
    crowd = [np.sum(1 / (np.hypot(*(centers - center).T) + 10)) for center in centers]
    for index in np.argsort(crowd)[::-1]:
        name = axis.annotate(label(names[index], 30), points[index], (0, 0), textcoords="offset points", fontsize=8)
        name.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        size = name.get_window_extent(renderer)
        others = taken[:index] + taken[index + 1 :]
        least, best = np.inf, None
        for reach in (6, 12, 20, 30, 42):
            if least <= 2 * reach * unit:
                break
            for across, along in _SIDES:
                shift = (reach * across * (0.75 if along else 1), reach * along)
                left = centers[index][0] + shift[0] * unit + size.width * (across - 1) / 2
                bottom = centers[index][1] + shift[1] * unit + size.height * (along - 1) / 2
                box = Bbox.from_bounds(left, bottom, size.width, size.height)
                hidden = sum(shared_area(box, other) for other in others)
                outside = box.width * box.height - shared_area(box, frame)
                bad = 10 * hidden + 4 * outside + 2 * reach * unit
                if bad < least:
                    least, best = bad, (shift, across, along, box, reach)
        shift, across, along, box, reach = best
        name.set(position=shift, ha=("center", "left", "right")[across], va=("center", "bottom", "top")[along])
        taken.append(box)
        if reach > 12:
            arrow = {"arrowstyle": "-", "color": "#9aa5b0", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axis.annotate("", points[index], shift, textcoords="offset points", xycoords="data", arrowprops=arrow)


def shared_area(one: Bbox, other: Bbox) -> float:
    """Return the area that two boxes have in common."""
    common = Bbox.intersection(one, other)
    return float(common.width * common.height) if common is not None else 0.0


def sanity(results: dict[str, Any], model: str) -> Figure | None:
    """Draw how similar the maps stay when the parameters are shuffled, the least similar first; None without numbers."""
    rows = [row for row in attribution.sanity(results, model) if row["mean"] is not None]
    if not rows:
        return None
    figure = Figure(figsize=(6.4, 0.27 * len(rows) + 0.75))
    axis = figure.subplots()
    axis.axvline(0, color=FRAME, linewidth=1)
    axis.set_yticks(range(len(rows)), [label(row["label"], 30) for row in rows], fontsize=8.5)
    for y, (row, tick) in enumerate(zip(rows, axis.get_yticklabels(), strict=True)):
        color = QUIET if row["control"] else LINE
        color, marker = (color, "o") if row["changed"] else (WRONG, "X")
        if row["low"] is not None and row["high"] is not None:
            axis.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2.4, alpha=0.45, solid_capstyle="butt")
        axis.plot([row["mean"]], [y], marker=marker, color=color, markersize=5.5, linestyle="none")
        tick.set_color(INK if color == LINE else color)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.1), max(high, 1.0) if high > 0.5 else high)
    axis.set_xlabel("rank correlation with the map of the trained network", fontsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    grid(axis)
    return figure
