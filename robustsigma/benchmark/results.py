"""From a finished run to the result that the report shows, in plain JSON types (schema 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from robustsigma.benchmark.findings import findings
from robustsigma.benchmark.flags import SAME_MAP, cell_flags, run_flags
from robustsigma.benchmark.images import shown
from robustsigma.benchmark.run import Run
from robustsigma.benchmark.settings import is_control
from robustsigma.benchmark.table import Column, Floats, Table, as_json
from robustsigma.engine.attributors import RandomAttribution
from robustsigma.engine.metrics import (
    AttributionMetric,
    Cost,
    Localization,
    MetricSpec,
    mean_band,
    share_interval,
)
from robustsigma.engine.metrics.diagnostics import ResultMetric
from robustsigma.engine.metrics.pic import aggregate
from robustsigma.evaluation.settings import describe

_SHOWN = 8
_MOST_POINTS = 101  # of a curve in the report
_STABILITY = MetricSpec("stability", "Stability", "higher", "rank correlation of the heatmaps of two seeds")
_SECONDS = MetricSpec("seconds", "Seconds", "lower", "time for each image, in batches, on the hardware named below")
_CURVE_TITLES = {
    "insertion": "Insertion",
    "deletion": "Deletion",
    "sic": "SIC",
    "aic": "AIC",
    "sensitivity_n": "Sensitivity-N",
}


def columns(metrics: Iterable[AttributionMetric], *, reruns: bool) -> list[Column]:
    """Return the quantities of the metrics and of what is measured beside them."""
    found: list[Column] = []
    for metric in metrics:
        if isinstance(metric, Cost):
            group = "cost"
        elif isinstance(metric, ResultMetric):
            group = "consistency"
        else:
            group = "localization" if isinstance(metric, Localization) else "faithfulness"
        found += [Column(quantity, group, repr(metric)) for quantity in metric.quantities]
    if reruns:
        found.append(Column(_STABILITY, "consistency", "rank correlation of abs_sum heatmaps, mean over seeds"))
    return [*found, Column(_SECONDS, "cost", "wall-clock time of the attribution alone")]


def read(run: Run) -> dict[str, Table]:
    """Return everything that a finished run measured, by model."""
    return {model: _table(run, model) for model in run.models}


def collect(run: Run, tables: dict[str, Table]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the result of a finished run and what it measured, and the arrays of its gallery."""
    settings, judged = run.settings, run.judged
    places = shown(judged.labels, _SHOWN)
    found: dict[str, Any] = {
        "schema": 1,
        "kind": "attribution",
        "settings": describe(settings),
        "dataset": {
            "name": type(settings.source).__name__,
            "split": settings.split,
            "classes": list(run.source.classes),
            "shape": list(run.source.shape),
            "images": len(judged.indices),
            "checked": min(settings.checked_batches * settings.batch_size, len(judged.indices)),
            "passed_over": {"misclassified by a model": _wrong(judged.right)},
            "masks": run.masks,
        },
        "models": [_model(run, name) for name in run.models],
        "methods": [
            {"id": name, "settings": repr(method), "control": is_control(method)}
            for name, method in settings.methods.items()
        ],
        "left_out": [
            {"model": model, "method": method, "reason": reason}
            for model in run.models
            for method in settings.methods
            if (reason := run.store.left_out(model, method)) is not None
        ],
        "metrics": [_metric(column) for column in next(iter(tables.values())).columns],
        "cells": [cell for model, table in tables.items() for cell in _cells(model, table)],
        "curves": _curves(tables),
        "sanity": [entry for model, table in tables.items() for entry in _sanity(model, table)],
        "gallery": _gallery(run, tables, places),
        "flags": run_flags(tables, {model: run.store.read_network(model) or [] for model in run.models}),
        "findings": findings(tables),
    }
    return found, _pictures(run, tables, places)


def _table(run: Run, model: str) -> Table:
    methods = [m for m in run.settings.methods if run.store.left_out(model, m) is None]
    kinds = run.settings.methods
    return Table(
        columns(run.metrics, reruns=run.settings.checked > 0),
        {method: run.store.read(model, method, run.batches) for method in methods},
        frozenset(method for method in methods if is_control(kinds[method])),
        next(method for method in methods if isinstance(kinds[method], RandomAttribution)),
    )


def _wrong(right: dict[str, list[float]]) -> int:
    return int((np.array(list(right.values())).min(axis=0) == 0).sum())


def _model(run: Run, name: str) -> dict[str, Any]:
    about = str(run.settings.models.get(name, f"{run.settings.architecture.name}, trained here"))
    return {"id": name, "about": about, "accuracy": as_json(share_interval(run.judged.right[name]))}


def _metric(column: Column) -> dict[str, Any]:
    q = column.quantity
    return {
        "id": q.name,
        "title": q.title,
        "group": column.group,
        "better": q.better,
        "about": q.about,
        "settings": column.settings,
    }


def _cells(model: str, table: Table) -> Iterable[dict[str, Any]]:
    for column in table.columns:
        name, order = column.quantity.name, table.ranked(column)
        for method in table.arrays:
            against = table.against_random(method, column)
            best = bool(order) and method == order[0]
            yield {
                "model": model,
                "method": method,
                "metric": name,
                **as_json(table.interval(method, name)),
                "skipped": table.skipped(method, name),
                "best": best,
                "clear": best and table.clear(column),
                "against_random": None if against is None else {**as_json(against[0]), "verdict": against[1]},
                "flags": cell_flags(table, method, column),
            }


def _curves(tables: dict[str, Table]) -> list[dict[str, Any]]:
    found = []
    for name, title in _CURVE_TITLES.items():
        lines: list[dict[str, Any]] = []
        grid, axes = np.empty(0), ("", "")
        for model, table in tables.items():
            for method, arrays in table.arrays.items():
                if f"curve/{name}" not in arrays:
                    continue
                grid, axes = arrays[f"grid/{name}"], tuple(arrays[f"axes/{name}"].tolist())
                line = _line(name, grid, arrays[f"curve/{name}"])
                if line is not None:
                    lines.append({"model": model, "method": method, **line})
        if lines:
            x = grid[_thinned(len(grid))].tolist()
            found.append({"id": name, "title": title, "x": x, "x_title": axes[0], "y_title": axes[1], "lines": lines})
    return found


def _line(name: str, grid: Floats, curves: Floats) -> dict[str, Any] | None:
    """Return the mean curve (of PIC the median, as PAIR takes it) with its band, over images that have all of it.

    `auc` is its mean height over the grid: the area, where the grid goes from 0 to 1.
    """
    whole = curves[np.isfinite(curves).all(axis=1)].astype(np.float64)
    if not len(whole):
        return None
    median = name in ("sic", "aic")
    kept = whole[:, _thinned(whole.shape[1])]
    center, low, high = mean_band(kept, median=median)
    if median:
        auc = aggregate(torch.from_numpy(whole))[1]
    else:
        mean = whole.mean(0)
        auc = float(np.trapezoid(mean, grid) / (grid[-1] - grid[0]) if len(grid) > 1 else mean[0])
    return {
        "mean": center.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "n": len(whole),
        "auc": auc,
        "center": "median" if median else "mean",
    }


def _thinned(points: int) -> np.ndarray:
    """Return the places of at most so many points of a curve, both ends among them."""
    return np.unique(np.linspace(0, points - 1, min(points, _MOST_POINTS)).round().astype(int))


def _sanity(model: str, table: Table) -> Iterable[dict[str, Any]]:
    for method in table.arrays:
        if not len(table.values(method, "randomization")):
            continue
        found = table.interval(method, "randomization")
        yield {
            "model": model,
            "method": method,
            "similarity": as_json(found),
            "changed": found is None or found.mean < SAME_MAP,
            "skipped": table.skipped(method, "randomization"),
        }


def _gallery(run: Run, tables: dict[str, Table], places: list[int]) -> dict[str, Any]:
    items = [
        {"model": model, "method": method, "converged": arrays["note/converged"][places].tolist()}
        for model, table in tables.items()
        for method, arrays in table.arrays.items()
    ]
    labels = run.judged.labels[places].tolist()
    return {"models": list(tables), "methods": list(run.settings.methods), "labels": labels, "items": items}


def _pictures(run: Run, tables: dict[str, Table], places: list[int]) -> dict[str, np.ndarray]:
    indices = [run.judged.indices[place] for place in places]
    images, masks = run.pictures(indices)
    blank = np.full((len(places), *images.shape[2:]), np.nan, dtype=np.float32)
    maps = [
        [table.arrays[method]["map"][places] if method in table.arrays else blank for method in run.settings.methods]
        for table in tables.values()
    ]
    arrays = {"images": images, "maps": np.array(maps)}
    return arrays if masks is None else {**arrays, "masks": masks >= 0.5}
