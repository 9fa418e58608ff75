"""Figures of images: examples, the path of a SIGMA sample, and heatmaps over the images they explain."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import attribution, text
from robustsigma.report.canvas import (
    CORRECT,
    LINE,
    QUIET,
    WRONG,
    bare,
    image_of,
    label,
    legend,
    overlay,
    percent_axis,
)
from robustsigma.report.robustness import accuracy_table
from robustsigma.report.validation import Floats, array, check_length, floats

_MOST = 10  # images in a row


def examples(results: dict[str, Any], images: Floats) -> Figure:
    """Draw the same images under each condition with the predictions of the model."""
    section = results["examples"]
    items, labels = section["items"], section["labels"]
    check_length("arrays['examples']", images, len(items), "conditions, one per item of results['examples']")
    check_length("results['examples']['labels']", labels, images.shape[1], "items, one per image")
    for row, item in enumerate(items):
        for key in ("predictions", "confidences"):
            where = f"results['examples']['items'][{row}][{key!r}]"
            check_length(where, item[key], images.shape[1], "items, one per image")
    heads = {head.id: (head.label, "" if group.key == "none" else group.key)
             for group in accuracy_table(results).columns for head in group.heads}  # fmt: skip
    captions = [[_prediction(results, item, column) for column in range(min(len(labels), _MOST))] for item in items]
    most = max(len(lines) for row in captions for lines in row)
    figure, axes = _grid(len(images), len(captions[0]), 1.15, 0.12 + 0.12 * most)
    for row, item in enumerate(items):
        _row_title(axes[row, 0], *heads.get(item["condition"], (item["condition"],)))
        for column, (axis, lines) in enumerate(zip(axes[row], captions[row], strict=True)):
            axis.imshow(image_of(images[row, column]), vmin=0, vmax=1)
            color = CORRECT if item["predictions"][column] == labels[column] else WRONG
            bare(axis, color)
            axis.set_xlabel("\n".join(lines), color=color, fontsize=7.5, labelpad=3, linespacing=1.1)
    _column_titles(results, axes, labels)
    return figure


def _prediction(results: dict[str, Any], item: dict[str, Any], column: int) -> list[str]:
    """Return the caption of an example: a wrong prediction, and the confidence in the true class."""
    guess, confidence = item["predictions"][column], f"{text.percent(item['confidences'][column], 0)}%"
    if guess == results["examples"]["labels"][column]:
        return [f"\u2713 {confidence}"]
    return [f"\u2717 {_class(results, guess)}", f"true {confidence}"]


def path(section: dict[str, Any], images: Floats, heat: Floats | None) -> Figure:
    """Draw images on the path of a SIGMA sample, the confidence over its steps, and its attribution."""
    steps = section["shown_steps"]
    check_length("arrays['path']", images, len(steps), "images, one per item of results['path']['shown_steps']")
    keep = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST)).round().astype(int))
    figure = Figure(figsize=(10.5, 4.6))
    outer = figure.add_gridspec(2, 1, height_ratios=(1, 1.7), hspace=0.32)
    above = outer[0].subgridspec(1, len(keep), wspace=0.08).subplots(squeeze=False)[0]
    for axis, index in zip(above, keep, strict=True):
        axis.imshow(image_of(images[index]), vmin=0, vmax=1)
        axis.set_title(f"step {steps[index]}", fontsize=8.5, pad=4)
        bare(axis)
    ratios = (2.6, 1) if heat is not None else (1,)
    below = outer[1].subgridspec(1, len(ratios), width_ratios=ratios, wspace=0.12).subplots(squeeze=False)[0]
    values = floats(section.get("confidence") or [])
    dots = [steps[index] for index in keep if 0 <= steps[index] < len(values)]
    below[0].plot(values, "-o", color=LINE, linewidth=1.8, markevery=dots, markersize=5, markeredgecolor="white")
    below[0].set(xlabel="step", ylabel="confidence in the target")
    percent_axis(below[0])
    if heat is not None:
        overlay(below[1], images[0], heat)
        legend(below[1])
        below[1].set_title("attribution", fontsize=8.5, pad=4)
        bare(below[1])
    return figure


def explanations(results: dict[str, Any], heat: Floats, images: Floats, masks: np.ndarray | None) -> Figure:
    """Draw each method's heatmaps over the images, one row for each method."""
    section = results["explanations"]
    check_length("arrays['explanations']", heat, len(section), "methods, one per item of results['explanations']")
    check_length("arrays['explanations'][0]", heat[0], len(images), "heatmaps, one per item of arrays['explained']")
    if masks is not None:
        check_length("arrays['masks']", masks, len(images), "masks, one per item of arrays['explained']")
    rows: list[Any] = []
    for method, maps in zip(section, heat, strict=True):
        gaps = [f"gap {text.number(gap, 2)}" for gap in method.get("gap") or []]
        rows.append((text.name(method["method"]), maps, method.get("converged") or [], gaps))
    return _heatmaps(results, images, rows, section[0].get("target") or [], masks, 0.22)


def maps(results: dict[str, Any], model: str, arrays: dict[str, np.ndarray]) -> Figure | None:
    """Draw the maps of a benchmark's methods over the images, one row for each; None if the model has no maps.

    Args:
        results: what the benchmark wrote, with a gallery that fits the arrays.
        model: the id of the model.
        arrays: `images` (N, C, H, W) in [0, 1], `maps` (models, methods, N, H, W) with NaN for methods that were left
            out, and optionally `masks` (N, H, W).
    """
    section = results.get("gallery") or {}
    if not section.get("items") or model not in section["models"]:
        return None
    names = attribution.names(results)
    converged = {entry["method"]: entry.get("converged") or [] for entry in section["items"] if entry["model"] == model}
    rows: list[Any] = [
        (names.get(method, method), np.nan_to_num(np.asarray(found, np.float64)), converged.get(method, []), [])
        for method, found in zip(section["methods"], arrays["maps"][section["models"].index(model)], strict=True)
        if np.isfinite(found).any()
    ]
    return _heatmaps(results, array(arrays, "images", 4), rows, section["labels"], arrays.get("masks"), 0.05)


def _heatmaps(
    results: dict[str, Any], images: Floats, rows: list[Any], classes: list[Any], masks: np.ndarray | None, extra: float
) -> Figure:
    """Draw the images, and below them a row of heatmaps for each (name, maps, converged, captions)."""
    count = min(len(images), _MOST)
    figure, axes = _grid(len(rows) + 1, count, 1.25, extra)
    _row_title(axes[0, 0], "image")
    for axis, image in zip(axes[0], images, strict=False):
        axis.imshow(image_of(image), vmin=0, vmax=1)
        bare(axis)
    _column_titles(results, axes, classes)
    legend(axes[min(1, len(axes) - 1), -1])
    for line, (name, maps, converged, captions) in zip(axes[1:], rows, strict=True):
        _row_title(line[0], name)
        for column, axis in enumerate(line):
            overlay(axis, images[column], maps[column])
            lost = column < len(converged) and not converged[column]
            bare(axis, WRONG if lost else None)
            caption = "not converged" if lost and extra > 0.1 else captions[column] if column < len(captions) else ""
            axis.set_xlabel(caption, color=WRONG if lost else QUIET, fontsize=7.5, labelpad=3)
            if masks is not None and np.any(masks[column]) and not np.all(masks[column]):
                axis.contour(np.asarray(masks[column], float), levels=[0.5], colors=["#00a396"], linewidths=1.2)
    return figure


def _row_title(axis: Any, *lines: str) -> None:
    """Write the title of a row before its first image; names in camel case may break."""
    spaced = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text.printable(line)) for line in lines]
    parts = [part for line in spaced for part in textwrap.wrap(line, 14, max_lines=3)]
    axis.set_ylabel("\n".join(label(part) for part in parts), rotation=0, ha="right", va="center", labelpad=8)


def _column_titles(results: dict[str, Any], axes: Any, classes: list[Any]) -> None:
    """Write the true or explained class above each column."""
    for axis, index in zip(axes[0], classes, strict=False):
        axis.set_title(_class(results, index), fontsize=9, fontweight="bold", pad=5)


def _class(results: dict[str, Any], index: Any) -> str:
    return label(text.class_name(results, index), 12)


def _grid(rows: int, columns: int, side: float, extra: float) -> tuple[Figure, Any]:
    """Return a figure of square cells with room for captions."""
    figure = Figure(figsize=(1.25 + side * columns, (side + extra) * rows + 0.25))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 1.25 * extra / side})
    return figure, axes
