"""Figures of curves: accuracy over the radius of an attack or over a training noise, and the curves behind metrics."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import attribution, robustness, text, training
from robustsigma.report.canvas import INK, QUIET, grid, label, line_styles, percent_axis
from robustsigma.report.table import HeadingGroup, headings
from robustsigma.report.validation import floats


def accuracy_over_eps(results: dict[str, Any]) -> Figure:
    """Draw a panel for each attack and protocol; models that were not retrained appear in gray in every panel."""
    table = robustness.accuracy_table(results)
    order = [head.id for head in table.row_heads]
    entries = [entry for entry in results.get("curves") or [] if entry["regime"] in order]
    entries.sort(key=lambda entry: order.index(entry["regime"]))
    measured = {entry["regime"] for entry in entries}
    attacks = [head for head in table.column_heads if any(entry["condition"] == head.id for entry in entries)]
    groups = [group for group in table.rows if any(head.id in measured for head in group.heads)]
    base = {head.id for group in groups if group.key == "none" for head in group.heads}
    trained = [group for group in groups if group.key != "none"] or groups
    styles = line_styles(dict.fromkeys(head.label for group in trained for head in group.heads))
    figure = Figure(figsize=(1.0 + 4.4 * len(trained), 0.8 + 2.9 * len(attacks)))
    axes = figure.subplots(len(attacks), len(trained), squeeze=False, sharey=True, gridspec_kw={"hspace": 0.42})
    for row, attack in zip(axes, attacks, strict=True):
        mine = [entry for entry in entries if entry["condition"] == attack.id]
        for axis, group in zip(row, trained, strict=True):
            _eps_panel(axis, mine, group, base, styles)
            title = ", ".join(filter(None, (label(attack.label), label(group.title.lower()))))
            axis.set_title(title, fontsize=9.5, fontweight="bold")
        row[0].set_ylabel("accuracy")
    return figure


def _eps_panel(
    axis: Any, entries: list[dict[str, Any]], group: HeadingGroup, base: set[str], styles: dict[str, dict[str, Any]]
) -> None:
    """Draw accuracy over eps on a logarithmic axis, with eps 0 left of the smallest one and chance as a dashed line."""
    every = sorted({float(value) for entry in entries for value in floats(entry["eps"]) if value > 0})
    zero = every[0] / 2
    names = {head.id: head.label for head in group.heads}
    for entry in entries:
        if entry["regime"] in names or entry["regime"] in base:
            name = names.get(entry["regime"], "base")
            style = {"color": QUIET, "marker": "."} if entry["regime"] in base else styles[name]
            eps = floats(entry["eps"])
            _band(axis, np.where(eps > 0, eps, zero), entry, name, style)
    axis.axhline(entries[0]["chance"], color=INK, linewidth=0.9, linestyle="--")
    axis.set_xscale("log", base=2)
    axis.set(xlim=(zero / 1.15, every[-1] * 1.15), xlabel="eps")
    axis.set_xticks([zero, *every], ["0", *(text.radius(value) for value in every)])
    axis.minorticks_off()
    percent_axis(axis)
    axis.legend(fontsize=7.5, frameon=False, loc="upper right")


def accuracy_over_distance(results: dict[str, Any]) -> Figure:
    """Draw a panel for each minimum-norm attack: the accuracy of each model over the radius."""
    table = robustness.accuracy_table(results)
    names = robustness.regime_names(table)
    entries = [entry for entry in results["distances"] if entry["regime"] in names]
    heads = [head for head in table.column_heads if any(entry["condition"] == head.id for entry in entries)]
    styles = line_styles(names)
    figure = Figure(figsize=(1.0 + 4.4 * max(1, len(heads)), 3.4))
    for axis, head in zip(figure.subplots(1, max(1, len(heads)), squeeze=False, sharey=True)[0], heads, strict=False):
        mine = [entry for entry in entries if entry["condition"] == head.id]
        for entry in mine:
            style = {**styles[entry["regime"]], "marker": None}
            _band(axis, floats(entry["radii"]), entry, label(names[entry["regime"]], 30), style)
        axis.set_title(label(head.label, 40), fontsize=9.5, fontweight="bold")
        axis.set(xlabel=f"radius in {mine[0].get('norm') or 'the norm of the attack'}", ylabel="accuracy")
        axis.set_xlim(left=0)
        percent_axis(axis)
        axis.legend(fontsize=7.5, frameon=False, loc="best")
    return figure


def _band(axis: Any, x: Any, line: dict[str, Any], name: str, style: dict[str, Any], width: float = 1.5) -> None:
    """Draw the means of a line with the band of its intervals."""
    mean, low, high = (floats(line[key]) for key in ("mean", "low", "high"))
    axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axis.plot(x, mean, markersize=4, linewidth=width, label=label(name), **style)


def sweep(results: dict[str, Any]) -> Figure:
    """Draw a panel for each regime: accuracy in each column over the training noise, and the score to maximize."""
    entries = results["sweep"]
    figure = Figure(figsize=(1.0 + 4.4 * len(entries), 3.6))
    axes = figure.subplots(1, len(entries), squeeze=False, sharey=True)[0]
    for axis, entry in zip(axes, entries, strict=True):
        rows, columns = entry["rows"], [head for _, head in headings(entry["columns"])]
        stds = floats([row["std"] for row in rows])
        by = str(entry.get("by"))
        for head, style in zip(columns, line_styles(head.id for head in columns).values(), strict=True):
            _band(axis, stds, _transposed([row["accuracy"].get(head.id) for row in rows]), head.label, style)
        chosen = training.CHOSEN_BY.get(by, (by,))[0].lower()
        _band(axis, stds, _transposed([row.get("score") for row in rows]), chosen, {"color": INK, "marker": "*"}, 2.4)
        axis.axvline(float(entry["best"]), color=INK, linewidth=0.9, linestyle="--")
        axis.set_xticks(stds, [f"{std:.3g}" for std in stds])
        axis.set_xlabel("standard deviation of the training noise")
        title = text.regime_name(text.name(entry["name"]), str(entry.get("protocol")))
        axis.set_title(label(title, 40), fontsize=9.5, fontweight="bold")
        axis.legend(fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=3)
        percent_axis(axis)
    axes[0].set_ylabel("accuracy")
    return figure


def _transposed(estimates: list[Any]) -> dict[str, list[Any]]:
    """Return the means and the ends of the intervals of some estimates, None where one is missing."""
    return {key: [(estimate or {}).get(key) for estimate in estimates] for key in ("mean", "low", "high")}


def metric_curves(results: dict[str, Any], model: str) -> Figure | None:
    """Draw a panel for each curve with a legend of the scores in the table, the best first; None without curves.

    Where the table has no metric of that name, the legend lists the areas under the curves.
    """
    panels = [
        (curve, [line for line in curve["lines"] if line["model"] == model]) for curve in results.get("curves") or []
    ]
    panels = [(curve, lines) for curve, lines in panels if lines]
    if not panels:
        return None
    across = min(len(panels), 2)
    down = math.ceil(len(panels) / across)
    most = max(len(lines) for _, lines in panels)
    figure = Figure(figsize=(6.4 * across, max(2.8, 0.17 * most + 0.75) * down))
    axes = figure.subplots(down, across, squeeze=False, gridspec_kw={"wspace": 0.85, "hspace": 0.42}).ravel()
    better = {metric["id"]: metric["better"] for metric in results["metrics"]}
    scores, names = attribution.scores(results, model), attribution.names(results)
    styles = line_styles(names, attribution.controls(results))
    for axis, (curve, lines) in zip(axes, panels, strict=False):
        sign = 1 if better.get(curve["id"]) == "lower" else -1
        values = {
            line["method"]: text.finite(
                scores.get((line["method"], curve["id"]), {}).get("mean") if curve["id"] in better else line.get("auc")
            )
            for line in lines
        }
        ranked = sorted(lines, key=lambda line: _last_if_none(values[line["method"]], sign))
        _curve_panel(axis, curve, ranked, styles)
        handles = [
            axis.plot([], [], markersize=3.6, linewidth=1.4, **styles.get(line["method"], {}))[0] for line in ranked
        ]
        texts = [f"{text.score(values[m])}  {label(names.get(m, m), 25)}" for m in (line["method"] for line in ranked)]
        head = f"{'score in the table' if curve['id'] in better else 'area'}, {'low' if sign > 0 else 'high'} is better"
        axis.legend(handles, texts, title=head, fontsize=7.4, title_fontsize=7.2, frameon=False, loc="center left",
                    bbox_to_anchor=(1.01, 0.5), alignment="left")  # fmt: skip
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def _last_if_none(value: float | None, sign: int) -> float:
    return math.inf if value is None else sign * value


def _curve_panel(
    axis: Any, curve: dict[str, Any], lines: list[dict[str, Any]], styles: dict[str, dict[str, Any]]
) -> None:
    """Draw the lines of one curve with their bands, the best on top."""
    x = floats(curve["x"])
    every = max(1, len(x) // 8)
    for place, line in enumerate(reversed(lines)):
        style = styles.get(line["method"], {})
        low, high = (floats(line.get(key) or [None] * len(x)) for key in ("low", "high"))
        axis.fill_between(x, low, high, color=style.get("color"), alpha=0.07, linewidth=0)
        axis.plot(x, floats(line["mean"]), linewidth=1.4, markersize=3.6, markevery=(place % every, every), **style)
    if x.size and np.nanmin(x) > 0 and np.nanmax(x) / np.nanmin(x) >= 30:
        axis.set_xscale("log")
    axis.margins(x=0.015)
    median = {line.get("center") for line in lines} == {"median"}
    side = label(curve.get("y_title") or "", 44) + (" (median)" if median else "")
    axis.set_title(label(curve["title"], 44), fontsize=10, fontweight="bold", loc="left", pad=6)
    axis.set_xlabel(label(curve.get("x_title") or "", 50), fontsize=8.5)
    axis.set_ylabel("\n".join(textwrap.wrap(side, 26)), fontsize=8.5)
    axis.tick_params(labelsize=8)
    grid(axis)
