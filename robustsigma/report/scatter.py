"""Figures of points with intervals: quality against cost, and the check with shuffled parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from robustsigma.report import attribution, text
from robustsigma.report.canvas import FRAME, INK, LINE, QUIET, WRONG, grid, label, line_styles

_PASSES = {"forwards": "forward", "backwards": "backward"}
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))  # of a point, where its name may stand


def cost(results: dict[str, Any], model: str) -> Figure | None:
    """Draw what one map costs against how good it is; None without two methods that have both.

    Panels are of the usual metrics and of the first metric of each protocol, else of the first metric of each group.
    """
    scores, names = attribution.scores(results, model), attribution.names(results)
    metrics = {metric["id"]: metric for metric in results["metrics"]}
    first = {metric["group"]: metric for metric in reversed(results["metrics"]) if metric["group"] != "cost"}
    of_protocols = [key for entry in results.get("protocols") or [] for key in entry["ranks_by"][:1]]
    usual = [metrics[key] for key in (*attribution.QUALITIES, *of_protocols) if key in metrics]
    spent = _spent(scores, [key for key in _PASSES if key in metrics] or ["seconds"])
    floor = min((value for value in spent.values() if value > 0), default=1.0) / 2  # where a cost of zero is drawn
    panels: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for chosen in (usual, list(first.values())[::-1]):
        for metric in () if panels else chosen:
            found = {m: _estimate(scores, m, metric["id"]) for m in names if m in spent}
            points = {m: (spent[m] or floor, *estimate) for m, estimate in found.items() if estimate[0] is not None}
            panels += [(metric, points)] * (len(points) > 1)
    if not panels:
        return None
    figure = Figure(figsize=(12, 3.3 * len(panels)))
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"hspace": 0.36}).ravel()
    styles = line_styles(names, attribution.controls(results))
    passes = " and ".join(name for key, name in _PASSES.items() if key in metrics)
    for axis, (metric, points) in zip(axes, panels, strict=True):
        _cost_panel(axis, metric, points, styles)
        unit = f"{passes} passes" if passes else "seconds"
        axis.set_xlabel(f"{unit} for one map (logarithmic)", fontsize=8.5)
        labels = [names[method] + (" (0)" if spent[method] == 0 else "") for method in points]
        name_points(figure, axis, [point[:2] for point in points.values()], labels)
    return figure


def _spent(scores: dict[tuple[str, str], dict[str, Any]], keys: list[str]) -> dict[str, float]:
    """Return the cost of one map of each method for which every part of it was measured."""
    parts = {method: [_estimate(scores, method, key)[0] for key in keys] for method, _ in scores}
    sums = {method: sum(part for part in found if part is not None) for method, found in parts.items()}
    return {method: value for method, value in sums.items() if None not in parts[method] and value >= 0}


def _estimate(scores: dict[tuple[str, str], dict[str, Any]], method: str, metric: str) -> list[float | None]:
    """Return the mean and the ends of the interval of a score."""
    return [text.finite(scores.get((method, metric), {}).get(key)) for key in ("mean", "low", "high")]


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


def name_points(figure: Figure, axis: Any, points: Sequence[Any], names: list[str]) -> None:
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
        tried: list[tuple[float, tuple[float, float], str, str, Bbox, int]] = []
        for reach in (6, 12, 20, 30, 42):
            if tried and min(candidate[0] for candidate in tried) <= 2 * reach * unit:
                break
            for across, along in _SIDES:
                shift = (reach * across * (0.75 if along else 1), reach * along)
                left = centers[index][0] + shift[0] * unit + size.width * (across - 1) / 2
                bottom = centers[index][1] + shift[1] * unit + size.height * (along - 1) / 2
                box = Bbox.from_bounds(left, bottom, size.width, size.height)
                hidden = sum(shared_area(box, other) for other in others)
                outside = box.width * box.height - shared_area(box, frame)
                bad = 10 * hidden + 4 * outside + 2 * reach * unit
                sides = (("center", "left", "right")[across], ("center", "bottom", "top")[along])
                tried.append((bad, shift, *sides, box, reach))
        _, place, horizontal, vertical, box, reach = min(tried, key=lambda candidate: candidate[0])
        name.set(position=place, ha=horizontal, va=vertical)
        taken.append(box)
        if reach > 12:
            arrow = {"arrowstyle": "-", "color": "#9aa5b0", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axis.annotate("", points[index], place, textcoords="offset points", xycoords="data", arrowprops=arrow)


def shared_area(one: Bbox, other: Bbox) -> float:
    """Return the area that two boxes have in common."""
    common = Bbox.intersection(one, other)
    return float(common.width * common.height) if common is not None else 0.0


def sanity(results: dict[str, Any], model: str) -> Figure | None:
    """Draw how similar maps stay when the parameters are shuffled, the least similar first; None without numbers."""
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
