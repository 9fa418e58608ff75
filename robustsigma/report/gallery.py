"""Figures made of images: examples under each condition, and explanations over the images they explain."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robustsigma.report import matrix, text
from robustsigma.report.canvas import MOST, QUIET, RIGHT, WRONG, Floats, array, bare, fit, image_of, label, overlay


def examples(results: dict[str, Any], images: Floats) -> Figure:
    """Draw the same images under each condition with the model's answer."""
    section = results["examples"]
    fit("examples", len(images), len(section["items"]), "conditions, one per item of results['examples']")
    heads = {head.id: head for head in matrix.build(results).conditions}
    count = min(images.shape[1], MOST)
    same = images.shape[1]
    _as_many(section["labels"], same, "['examples']['labels']")
    for row, item in enumerate(section["items"]):
        for key in ("predictions", "confidences"):
            _as_many(item[key], same, f"['examples']['items'][{row}][{key!r}]")
    said = [[_answer(results, item, column) for column in range(count)] for item in section["items"]]
    most = max(len(lines) for captions in said for lines in captions)
    figure, axes = _grid(len(images), count, 1.15, 0.12 + 0.12 * most)
    for row, item in enumerate(section["items"]):
        head = heads.get(item["condition"])
        reading = "" if head is None or head.group == "none" else head.group
        _title(axes[row, 0], head.label if head else item["condition"], reading)
        for column in range(count):
            axis, truth, guess = axes[row, column], section["labels"][column], item["predictions"][column]
            axis.imshow(image_of(images[row, column]), vmin=0, vmax=1)
            colour = RIGHT if guess == truth else WRONG
            bare(axis, colour)
            axis.set_xlabel("\n".join(said[row][column]), color=colour, fontsize=7.5, labelpad=3, linespacing=1.1)
            if row == 0:
                axis.set_title(_class(results, truth), fontsize=9, fontweight="bold", pad=5)
    return figure


def _answer(results: dict[str, Any], item: dict[str, Any], column: int) -> list[str]:
    """Return the lines below an example: its confidence is in the true class, so it is kept off a wrong answer."""
    truth, guess = results["examples"]["labels"][column], item["predictions"][column]
    confidence = f"{text.percent(item['confidences'][column], 0)} %"
    if guess == truth:
        return [f"\u2713 {confidence}"]
    name = _class(results, guess)
    return [*([f"\u2717 said {name}"] if len(name) < 11 else ["\u2717 said", name]), f"true {confidence}"]


def explanations(results: dict[str, Any], heat: Floats, images: Floats, masks: np.ndarray | None) -> Figure:
    """Draw each method's heatmap over the images, one row a method."""
    section = results["explanations"]
    fit("explanations", len(heat), len(section), "methods, one per item of results['explanations']")
    fit("explanations", heat.shape[1], len(images), "heatmaps a method, one per item of arrays['explained']")
    if masks is not None:
        fit("masks", len(masks), len(images), "masks, one per item of arrays['explained']")
    count = min(len(images), MOST)
    figure, axes = _grid(len(heat) + 1, count, 1.25, 0.22)
    _title(axes[0, 0], "image")
    for column in range(count):
        axes[0, column].imshow(image_of(images[column]), vmin=0, vmax=1)
        bare(axes[0, column])
        targets = section[0].get("target") or []
        title = _class(results, targets[column]) if column < len(targets) else ""
        axes[0, column].set_title(title, fontsize=9, fontweight="bold", pad=5)
    for row, method in enumerate(section, 1):
        _title(axes[row, 0], text.name(method["method"]))
        for column in range(count):
            overlay(axes[row, column], images[column], heat[row - 1, column])
            if masks is not None:
                outline(axes[row, column], masks[column])
            _verdict(axes[row, column], method, column)
    return figure


def attributions(results: dict[str, Any], model: str, names: dict[str, str], arrays: dict[str, Any]) -> Figure | None:
    """Draw the maps of a benchmark's methods over the images, one row a method; None if the model has no maps.

    Args:
        results: what the benchmark measured, with a gallery that fits the arrays.
        model: whose maps are drawn.
        names: of the methods, by identity.
        arrays: `images` (N, C, H, W) in [0, 1], `maps` (models, methods, N, H, W), NaN where a method was left out, and
            perhaps `masks` (N, H, W).
    """
    section = results.get("gallery") or {}
    if not section.get("items") or model not in section["models"]:
        return None
    every = np.asarray(arrays["maps"])[section["models"].index(model)]
    there = [index for index, maps in enumerate(every) if np.isfinite(maps).any()]
    images, masks = array(arrays, "images", 4), arrays.get("masks")
    count = min(len(images), MOST)
    said = {entry["method"]: entry for entry in section["items"] if entry["model"] == model}
    figure, axes = _grid(len(there) + 1, count, 1.25, 0.05)
    _title(axes[0, 0], "image")
    for column in range(count):
        axes[0, column].imshow(image_of(images[column]), vmin=0, vmax=1)
        axes[0, column].set_title(_class(results, section["labels"][column]), fontsize=9, fontweight="bold", pad=5)
        bare(axes[0, column])
    for row, index in enumerate(there, 1):
        method = section["methods"][index]
        converged = said.get(method, {}).get("converged") or []
        _title(axes[row, 0], *text.lines(names.get(method, method), 14)[:3])
        for column in range(count):
            axis = axes[row, column]
            overlay(axis, images[column], np.nan_to_num(np.asarray(every[index, column], np.float64)))
            bare(axis, WRONG if column < len(converged) and converged[column] is False else None)
            if masks is not None:
                outline(axis, masks[column])
    return figure


def outline(axis: Any, mask: np.ndarray) -> None:
    """Draw the edge of the part that is known to matter."""
    if np.any(mask) and not np.all(mask):
        axis.contour(np.asarray(mask, float), levels=[0.5], colors=["#00a396"], linewidths=1.2)


def _verdict(axis: Any, method: dict[str, Any], column: int) -> None:
    """Write below a heatmap how much it leaves unexplained, and whether its search did not converge."""
    converged, gaps = method.get("converged") or [], method.get("gap") or []
    lost = column < len(converged) and not converged[column]
    shown = f"gap {text.number(gaps[column], 2)}" if column < len(gaps) else ""
    bare(axis, WRONG if lost else None)
    axis.set_xlabel("not converged" if lost else shown, color=WRONG if lost else QUIET, fontsize=7.5, labelpad=3)


def _as_many(values: list[Any], wanted: int, where: str) -> None:
    """Refuse a list that does not have one item an image."""
    if len(values) != wanted:
        raise ValueError(f"results{where}: expected {wanted} items, one per image, got {len(values)}")


def _title(axis: Any, *lines: str) -> None:
    """Write the title of a row before its first image."""
    parts = [part for line in lines for part in textwrap.wrap(text.printable(line), 14, max_lines=3)]
    axis.set_ylabel("\n".join(label(part) for part in parts), rotation=0, ha="right", va="center", labelpad=8)


def _class(results: dict[str, Any], index: Any) -> str:
    """Return the name of a class by its index."""
    names = (results.get("dataset") or {}).get("classes") or []
    return label(names[index] if 0 <= int(index) < len(names) else index, 12)


def _grid(rows: int, columns: int, side: float, extra: float) -> tuple[Figure, Any]:
    """Return a figure of images: square cells with room for a caption."""
    figure = Figure(figsize=(1.25 + side * columns, (side + extra) * rows + 0.25))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 1.25 * extra / side})
    return figure, axes
