"""The pictures: cost, memory and completeness gaps as curves, and efficiencies as bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from robustsigma.report.canvas import INK, LINE, QUIET, RIGHT, WRONG, png, styled

_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def draw(results: dict[str, Any]) -> dict[str, bytes]:
    """Return PNG files by name."""
    panels: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
        "cost": ("Cost-curves", _cost),
        "memory": ("Memory-curves", _memory),
        "gap": ("Gaps", _gap),
    }
    nets = {net: each["rows"] for net, each in results["nets"].items()}
    found: dict[str, bytes] = {}
    with styled():
        for name, (row, panel) in panels.items():
            shown = {net: rows[row]["curves"] for net, rows in nets.items() if row in rows}
            if shown:
                figure = Figure(figsize=(5.2 * len(shown), 4.2))
                axes = figure.subplots(1, len(shown), squeeze=False)[0]
                for axis, (net, curves) in zip(axes, shown.items(), strict=True):
                    panel(axis, curves)
                    axis.set_xscale("log", base=2)
                    axis.legend(fontsize=7, frameon=False)
                    axis.set_title(net, fontweight="bold")
                found[name] = png(figure)
        bars = {net: {n: r["efficiency"] for n, r in rows.items() if r.get("efficiency")} for net, rows in nets.items()}
        bars = {net: rows for net, rows in bars.items() if rows}
        if bars:
            found["efficiency"] = png(_bars(bars))
    return found


def _cost(axis: Any, curves: dict[str, Any]) -> None:
    for (name, curve), hue in zip(curves.items(), _HUES, strict=False):
        at, medians = curve["at"], [cost["median"] for cost in curve["costs"]]
        lows = [cost["median"] - cost["low"] for cost in curve["costs"]]
        highs = [cost["high"] - cost["median"] for cost in curve["costs"]]
        axis.errorbar(at, medians, [lows, highs], color=hue, marker="o", capsize=2, label=name)
        axis.plot(at, [medians[-1] * n / at[-1] for n in at], color=hue, lw=0.7, ls=":")
    axis.set_yscale("log", base=2)
    axis.set_xlabel("amount of work, relative (dotted: proportional)")
    axis.set_ylabel("cost in forward passes")


def _memory(axis: Any, curves: dict[str, Any]) -> None:
    for (name, curve), hue in zip(curves.items(), _HUES, strict=False):
        axis.plot([n / curve["at"][0] for n in curve["at"]], curve["passes"], color=hue, marker="o", label=name)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("number of steps, relative")
    axis.set_ylabel("peak memory, in passes of a full batch")


def _gap(axis: Any, curves: dict[str, Any]) -> None:
    rules = list(dict.fromkeys(name.removeprefix("captum, ") for name in curves))
    for name, curve in curves.items():
        hue = _HUES[rules.index(name.removeprefix("captum, ")) % len(_HUES)]
        style = {"ls": "--", "marker": "x", "alpha": 0.7} if name.startswith("captum") else {"ls": "-", "marker": "o"}
        axis.plot(curve["passes"], curve["gap"], color=hue, ms=4, label=name.replace("_", " "), **style)
    axis.set_yscale("log")
    axis.set_xlabel("passes per image")
    axis.set_ylabel("completeness gap / drop, median")


def _bars(nets: dict[str, dict[str, Any]]) -> Figure:
    names = list(dict.fromkeys(name for rows in nets.values() for name in rows))
    figure = Figure(figsize=(4.2 * len(nets), 0.8 + 0.26 * len(names)))
    axes = figure.subplots(1, len(nets), squeeze=False, sharey=True)[0]
    for axis, (net, rows) in zip(axes, nets.items(), strict=True):
        for name, found in rows.items():
            place = names.index(name)
            axis.barh(place, found["median"], color=RIGHT if found["median"] >= 0.9 else LINE, height=0.6)
            axis.plot([found["low"], found["high"]], [place, place], color=INK, lw=1)
        axis.axvline(1, color=QUIET, lw=0.8)
        axis.axvline(0.9, color=WRONG, lw=0.8, ls=":")
        axis.set_title(net, fontweight="bold")
        axis.set_xlabel("efficiency: limit / time")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure
