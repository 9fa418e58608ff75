"""Figures of the report, drawn without a display and without global state of matplotlib."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import curves, gallery, matrix, text
from robustsigma.report.canvas import (
    INK,
    LINE,
    MOST,
    QUIET,
    Floats,
    array,
    bare,
    fit,
    image_of,
    label,
    overlay,
    png,
    styled,
)


def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Draw what the result holds.

    Args:
        results: what the evaluation measured (schema 1).
        arrays: images and heatmaps of its sections.

    Returns:
        PNG files by name: `matrix`, and `curves`, `sweep`, `examples`, `path`, `explanations` where there are such.

    Raises:
        ValueError: if a section's array is missing or does not fit.
    """
    made: dict[str, bytes] = {}
    with styled():
        made["matrix"] = png(_matrix(matrix.build(results)))
        if results.get("curves"):
            made["curves"] = png(curves.draw(results))
        if results.get("sweep"):
            made["sweep"] = png(curves.draw_sweep(results))
        if (results.get("examples") or {}).get("items"):
            made["examples"] = png(gallery.examples(results, array(arrays, "examples", 5)))
        if (results.get("path") or {}).get("shown_steps"):
            made["path"] = png(_path(results["path"], array(arrays, "path", 4), arrays.get("path_attribution")))
        if results.get("explanations"):
            heat, images = array(arrays, "explanations", 4), array(arrays, "explained", 4)
            made["explanations"] = png(gallery.explanations(results, heat, images, arrays.get("masks")))
    return made


def _matrix(found: matrix.Matrix) -> Figure:
    """Draw the matrix of accuracies."""
    columns, rows = found.conditions, found.regimes
    figure = Figure(figsize=(1.7 + 0.82 * len(columns), 0.95 + 0.44 * len(rows)))
    axis = figure.subplots()
    for y, regime in enumerate(rows):
        for x, condition in enumerate(columns):
            value = found.mean(regime.id, condition.id)
            background, ink = text.colour(value)
            axis.add_patch(mpl.patches.Rectangle((x, y), 1, 1, facecolor=background, edgecolor="white", linewidth=1.5))
            marks = found.cells[regime.id, condition.id].notes if (regime.id, condition.id) in found.cells else ()
            shown = text.percent(value) + (" *" if marks else "")
            axis.text(x + 0.5, y + 0.5, shown, ha="center", va="center", color=ink, fontsize=9)
    axis.set(xlim=(0, max(len(columns), 1)), ylim=(max(len(rows), 1), 0))
    axis.set_xticks(np.arange(len(columns)) + 0.5, [label(head.label, 14) for head in columns], color=INK)
    protocol = {group.key: group.title.lower() for group in found.rows}
    names = [label(h.label) + ("" if h.group == "none" else f", {label(protocol[h.group])}") for h in rows]
    axis.set_yticks(np.arange(len(rows)) + 0.5, names, color=INK)
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    _rules(axis, found)
    return figure


def _rules(axis: Any, found: matrix.Matrix) -> None:
    """Draw the lines between groups and the names of the readings."""
    lift = -0.72
    start = 0
    for group in found.columns:
        width = len(group.heads)
        axis.text(
            start + width / 2, lift, label(group.title), ha="center", va="bottom", fontweight="bold", fontsize=8.5
        )
        axis.plot([start + 0.06, start + width - 0.06], [lift, lift], color=QUIET, linewidth=0.8, clip_on=False)
        start += width
    row = 0
    for group in found.rows[:-1]:
        row += len(group.heads)
        axis.axhline(row, color=INK, linewidth=1.0)


def _path(section: dict[str, Any], images: Floats, attribution: np.ndarray | None) -> Figure:
    """Draw the images on the way, the confidence in the target, and the attribution."""
    steps = section["shown_steps"]
    fit("path", len(images), len(steps), "images, one per item of results['path']['shown_steps']")
    keep = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST)).round().astype(int))
    figure = Figure(figsize=(10.5, 4.6))
    outer = figure.add_gridspec(2, 1, height_ratios=(1, 1.7), hspace=0.32)
    cells = outer[0].subgridspec(1, len(keep), wspace=0.08)
    for place, index in enumerate(keep):
        axis = figure.add_subplot(cells[0, place])
        axis.imshow(image_of(images[index]), vmin=0, vmax=1)
        axis.set_title(f"step {steps[index]}", fontsize=8.5, pad=4)
        bare(axis)
    parts = outer[1].subgridspec(1, 2, width_ratios=(2.6, 1), wspace=0.12) if attribution is not None else None
    _curve(figure.add_subplot(outer[1] if parts is None else parts[0, 0]), section, [steps[i] for i in keep])
    if attribution is not None and parts is not None:
        heat = array({"path_attribution": attribution}, "path_attribution", 2)
        axis = figure.add_subplot(parts[0, 1])
        overlay(axis, images[0], heat)
        axis.set_title("attribution", fontsize=8.5, pad=4)
        bare(axis)
    return figure


def _curve(axis: Any, section: dict[str, Any], steps: list[int]) -> None:
    """Draw the confidence in the target over the steps."""
    values = np.array([np.nan if text.finite(v) is None else v for v in section.get("confidence") or []], float)
    axis.plot(values, color=LINE, linewidth=1.8)
    dots = [step for step in steps if 0 <= step < len(values)]
    axis.plot(dots, values[dots], "o", color=LINE, markersize=5, markeredgecolor="white")
    axis.set(ylim=(-0.03, 1.05), xlabel="step", ylabel="confidence in the target")
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.grid(axis="y", color="#e6eaee", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
