"""The pictures: cost and memory over paths, steps and images; the completeness gap over passes; efficiencies."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from robustsigma.report.canvas import INK, LINE, QUIET, RIGHT, WRONG, png, styled

_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def draw(results: dict[str, Any]) -> dict[str, bytes]:
    """Return PNG files by name, of what was measured."""
    nets = results["nets"]
    found: dict[str, bytes] = {}
    with styled():
        for name, row, panel in (
            ("cost", "Cost-curves", _cost),
            ("memory", "Memory-curves", _memory),
            ("gap", "Gaps", _gap),
        ):
            having = {net: each["rows"][row] for net, each in nets.items() if row in each["rows"]}
            if having:
                figure = Figure(figsize=(5.2 * len(having), 4.2))
                axes = figure.subplots(1, len(having), squeeze=False)[0]
                for axis, (net, curves) in zip(axes, having.items(), strict=True):
                    panel(axis, curves["curves"])
                    axis.set_title(net, fontweight="bold")
                found[name] = png(figure)
        having = {net: _efficiencies(each["rows"]) for net, each in nets.items()}
        having = {net: rows for net, rows in having.items() if rows}
        if having:
            found["efficiency"] = png(_bars(having))
    return found


def _cost(axis: Any, curves: dict[str, Any]) -> None:
    for (name, curve), hue in zip(curves.items(), _HUES, strict=False):
        medians = [cost["median"] for cost in curve["costs"]]
        ends = [[m - c["low"] for m, c in zip(medians, curve["costs"], strict=True)],
                [c["high"] - m for m, c in zip(medians, curve["costs"], strict=True)]]  # fmt: skip
        axis.errorbar(curve["at"], medians, ends, color=hue, marker="o", capsize=2, label=name)
        axis.plot(curve["at"], [medians[-1] * n / curve["at"][-1] for n in curve["at"]], color=hue, lw=0.7, ls=":")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("times as many (dotted: proportional)")
    axis.set_ylabel("cost in forward passes")
    axis.legend(fontsize=7.5, frameon=False)


def _memory(axis: Any, curves: dict[str, Any]) -> None:
    for (name, curve), hue in zip(curves.items(), _HUES, strict=False):
        axis.plot([n / curve["at"][0] for n in curve["at"]], curve["passes"], color=hue, marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("times as many steps")
    axis.set_ylabel("peak memory, in passes of a full batch")
    axis.legend(fontsize=7.5, frameon=False)


def _gap(axis: Any, curves: dict[str, Any]) -> None:
    rules = list(dict.fromkeys(name.removeprefix("captum, ") for name in curves))
    for name, curve in curves.items():
        hue = _HUES[rules.index(name.removeprefix("captum, ")) % len(_HUES)]
        theirs = name.startswith("captum")
        style = {"ls": "--", "marker": "x", "alpha": 0.7} if theirs else {"ls": "-", "marker": "o"}
        axis.plot(curve["passes"], curve["gap"], color=hue, ms=4, label=name.replace("_", " "), **style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("passes an image")
    axis.set_ylabel("completeness gap / drop, median")
    axis.legend(fontsize=6.5, frameon=False)


def _efficiencies(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: row["efficiency"] for name, row in rows.items() if row.get("efficiency")}


def _bars(nets: dict[str, dict[str, Any]]) -> Figure:
    names = list(dict.fromkeys(name for rows in nets.values() for name in rows))
    figure = Figure(figsize=(4.2 * len(nets), 0.8 + 0.26 * len(names)))
    axes = figure.subplots(1, len(nets), squeeze=False, sharey=True)[0]
    for axis, (net, rows) in zip(axes, nets.items(), strict=True):
        for place, name in enumerate(names):
            if name in rows:
                found = rows[name]
                axis.barh(place, found["median"], color=RIGHT if found["median"] >= 0.9 else LINE, height=0.6)
                axis.plot([found["low"], found["high"]], [place, place], color=INK, lw=1)
        axis.axvline(1, color=QUIET, lw=0.8)
        axis.axvline(0.9, color=WRONG, lw=0.8, ls=":")
        axis.set_title(net, fontweight="bold")
        axis.set_xlabel("efficiency: limit / time")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure
