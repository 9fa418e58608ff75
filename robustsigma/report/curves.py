"""The figures of accuracy over the radius of each attack, and over the strength of the noise in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import matrix, sweep, trust
from robustsigma.report.canvas import INK, QUIET, floats, label

# Seven hues that are told apart with every kind of colour vision (Okabe and Ito, 2008), and a mark each.
_LINES = (
    ("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"),
    ("#7a5195", "X"),
)  # fmt: skip


def draw(results: dict[str, Any]) -> Figure:
    """Draw one panel for each attack and protocol; the models that were not retrained stand grey in the others."""
    found = matrix.build(results)
    curves = trust.curves(results, found)
    labels = {head.id: head.label for head in found.conditions}
    measured = {entry["regime"] for entries in curves.values() for entry in entries}
    groups = [group for group in found.rows if any(head.id in measured for head in group.heads)]
    trained = [group for group in groups if group.key != "none"] or groups
    base = {head.id for group in groups if group.key == "none" for head in group.heads}
    colours = _colours(trained)
    figure = Figure(figsize=(1.0 + 4.4 * len(trained), 0.8 + 2.9 * len(curves)))
    axes = figure.subplots(len(curves), len(trained), squeeze=False, sharey=True, gridspec_kw={"hspace": 0.42})
    for row, (attack, entries) in zip(axes, curves.items(), strict=True):
        smallest = min(value for entry in entries for value in floats(entry["eps"]) if value > 0)
        for axis, group in zip(row, trained, strict=True):
            heads = {head.id: head.label for head in group.heads}
            for entry in entries:
                if entry["regime"] in heads or entry["regime"] in base:
                    line = colours.get(entry["regime"], (QUIET, "."))
                    _line(axis, entry, heads.get(entry["regime"], "base"), line, smallest)
            _frame(axis, entries, smallest)
            axis.set_title(f"{label(labels[attack])}, {label(group.title.lower())}", fontsize=9.5, fontweight="bold")
            axis.legend(fontsize=7.5, frameon=False, loc="upper right")
        row[0].set_ylabel("accuracy")
    return figure


def _colours(groups: list[matrix.Group]) -> dict[str, tuple[str, str]]:
    """Return a colour and a mark for each model: the same for the same name in every protocol."""
    names = list(dict.fromkeys(head.label for group in groups for head in group.heads))
    return {
        head.id: _LINES[names.index(head.label) % len(_LINES)]
        for group in groups
        if group.key != "none"
        for head in group.heads
    }


def _line(axis: Any, entry: dict[str, Any], name: str, style: tuple[str, str], smallest: float) -> None:
    """Draw a curve with its band; eps 0 lies left of the smallest one, as a logarithm has no zero."""
    eps = floats(entry["eps"])
    places = np.where(eps > 0, eps, smallest / 2)
    mean, low, high = (floats(entry[key]) for key in ("mean", "low", "high"))
    axis.fill_between(places, low, high, color=style[0], alpha=0.13, linewidth=0)
    axis.plot(places, mean, color=style[0], marker=style[1], markersize=4, linewidth=1.5, label=label(name))


def _frame(axis: Any, entries: list[dict[str, Any]], smallest: float) -> None:
    """Set the axes: radii doubled from tick to tick, chance as a dashed line."""
    largest = max(float(np.nanmax(floats(entry["eps"]))) for entry in entries)
    every = sorted({float(value) for entry in entries for value in floats(entry["eps"]) if value > 0})
    axis.axhline(entries[0]["chance"], color=INK, linewidth=0.9, linestyle="--")
    axis.set_xscale("log", base=2)
    axis.set(xlim=(smallest / 2 / 1.15, largest * 1.15), ylim=(-0.03, 1.03), xlabel="eps")
    axis.set_xticks([smallest / 2, *every], ["0", *(f"{value:.2g}" for value in every)])
    axis.minorticks_off()
    _dress(axis)


def _dress(axis: Any) -> None:
    """Write the accuracies in per cent, and take away what is no data."""
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_sweep(results: dict[str, Any]) -> Figure:
    """Draw one panel for each regime: accuracy in each column over the std trained on, and what the best is best by."""
    blocks = sweep.build(results)
    figure = Figure(figsize=(1.0 + 4.4 * len(blocks), 3.6))
    axes = figure.subplots(1, len(blocks), squeeze=False, sharey=True)[0]
    for axis, block in zip(axes, blocks, strict=True):
        stds = floats(row["std"] for row in block.rows)
        for number, head in enumerate(block.heads):
            colour, mark = _LINES[number % len(_LINES)]
            _band(axis, stds, [row["accuracy"].get(head.id) for row in block.rows], colour, mark, head.label)
        _band(axis, stds, [row.get("score") for row in block.rows], INK, "*", block.judged[0].lower(), 2.4)
        axis.axvline(float(block.entry["best"]), color=INK, linewidth=0.9, linestyle="--")
        axis.set_xticks(stds, [f"{std:.3g}" for std in stds])
        axis.set(ylim=(-0.03, 1.03), xlabel="std of the noise in training")
        axis.set_title(label(block.title, 40), fontsize=9.5, fontweight="bold")
        axis.legend(fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=3)
        _dress(axis)
    axes[0].set_ylabel("accuracy")
    return figure


def _band(axis: Any, x: Any, of: list[Any], colour: str, mark: str, name: str, width: float = 1.4) -> None:
    """Draw a line through means with the band of their intervals."""
    mean, low, high = (floats((interval or {}).get(key) for interval in of) for key in ("mean", "low", "high"))
    axis.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
    axis.plot(x, mean, color=colour, marker=mark, markersize=4, linewidth=width, label=label(name))
