"""How each method looks in every figure, and labels that keep clear of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from robustsigma.report.attribution.board import Method
from robustsigma.report.canvas import label

# Seven colours that stay apart for every kind of colour vision (Okabe and Ito, 2008, without black and yellow, with a
# brown); method k and method k + 7 share a colour and differ in dash and marker.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc6fa6", "#4fa8dc", "#b07d00", "#5b3a8c")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", "h", ">", "d", "*", "8")
_GREY = ("#4d5862", "#8a949e")
_CONTROL_DASHES: tuple[Any, ...] = ((0, (3, 2)), (0, (1, 1.5)))


def looks(methods: Iterable[Method]) -> dict[str, dict[str, Any]]:
    """Return the colour, the dash and the marker of each method: controls in grey.

    Args:
        methods: all methods of the result, in its order, so that every figure shows a method alike.
    """
    found: dict[str, dict[str, Any]] = {}
    many = few = 0
    for method in methods:
        if method.control:
            found[method.id] = {
                "color": _GREY[few % len(_GREY)],
                "linestyle": _CONTROL_DASHES[few % len(_CONTROL_DASHES)],
                "marker": "x" if few % 2 == 0 else "+",
            }
            few += 1
        else:
            found[method.id] = {
                "color": _COLOURS[many % len(_COLOURS)],
                "linestyle": _DASHES[many // len(_COLOURS) % len(_DASHES)],
                "marker": _MARKERS[many % len(_MARKERS)],
            }
            many += 1
    return found


def grid(axis: Any) -> None:
    """Draw faint lines behind what an axis shows, and no frame above and to the right."""
    axis.grid(color="#e6eaee", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def name_points(figure: Figure, axis: Any, points: list[tuple[float, float]], names: list[str], size: float,
                spans: list[tuple[float, float | None, float | None]]) -> None:  # fmt: skip
    """Write a name beside each point, where it hides no other name and no point if there is such a place.

    Args:
        figure: that holds the axis; its limits must be set already.
        axis: where the points lie.
        points: in the units of the axis.
        names: one a point.
        size: of the letters, in points.
        spans: upright lines to keep off as far as possible: where, from, to.
    """
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    unit = figure.dpi / 72
    centres = axis.transData.transform(np.asarray(points, float).reshape(-1, 2))
    taken = [Bbox.from_extents(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in centres]
    upright = [
        axis.transData.transform([(x, low), (x, high)])
        for x, low, high in spans
        if low is not None and high is not None
    ]
    bars = [Bbox.from_extents(ends[0, 0] - unit, ends[0, 1], ends[1, 0] + unit, ends[1, 1]) for ends in upright]
    frame = axis.get_window_extent(renderer)
    order = sorted(range(len(points)), key=lambda index: _crowd(centres, index), reverse=True)
    for index in order:
        drawn = axis.annotate(label(names[index], 30), points[index], (0, 0), textcoords="offset points", fontsize=size)
        drawn.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        extent = drawn.get_window_extent(renderer)
        best, best_cost = None, np.inf
        for reach in (6, 12, 20, 30, 42):
            if best_cost <= reach * unit * 2:
                break
            for across, along in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
                shift = (reach * across * (0.75 if along else 1), reach * along)
                left = centres[index][0] + shift[0] * unit + extent.width * (across - 1) / 2
                bottom = centres[index][1] + shift[1] * unit + extent.height * (along - 1) / 2
                box = Bbox.from_bounds(left, bottom, extent.width, extent.height)
                hidden = sum(_shared(box, other) for place, other in enumerate(taken) if place != index)
                hidden += sum(_shared(box, bar) for bar in bars)
                outside = box.width * box.height - _shared(box, frame)
                cost = 10 * hidden + 4 * outside + reach * unit * 2
                if cost < best_cost:
                    best, best_cost = (shift, across, along, box, reach), cost
        if best is None:
            continue
        place, across, along, box, reach = best
        drawn.set(position=place, ha=("right", "center", "left")[across + 1], va=("top", "center", "bottom")[along + 1])
        taken.append(box)
        if reach > 12:
            axis.annotate("", points[index], place, textcoords="offset points", xycoords="data",
                          arrowprops={"arrowstyle": "-", "color": "#9aa5b0", "linewidth": 0.6, "shrinkA": 0,
                                      "shrinkB": 3})  # fmt: skip


def _crowd(centres: np.ndarray, index: int) -> float:
    """Return how near the other points are: those in a crowd are named first, while there is room."""
    away = np.hypot(*(centres - centres[index]).T)
    return float(np.sum(1 / (away + 10)))


def _shared(one: Bbox, other: Bbox) -> float:
    """Return the area that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0) * max(height, 0))
