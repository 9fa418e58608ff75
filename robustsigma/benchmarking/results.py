"""From a finished benchmark to its results and the images of its gallery."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from robustsigma.benchmarking.findings import findings, verdict
from robustsigma.benchmarking.flags import SAME_MAP, cell_flags, run_flags
from robustsigma.benchmarking.given_data import GivenDataset
from robustsigma.benchmarking.rankings import protocol_entries, ranking_findings, rankings, step_findings
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.settings import is_control
from robustsigma.benchmarking.table import Floats, MetricColumn, ScoreTable, as_json
from robustsigma.engine.attributors import RandomAttribution
from robustsigma.engine.metrics import (
    AttributionMetric,
    MetricSpec,
    mean_band,
    share_interval,
)
from robustsigma.engine.metrics.pic import aggregate
from robustsigma.evaluation.given_models import about
from robustsigma.evaluation.unwrapped_data import data_name
from robustsigma.runs.fingerprint import describe, stable_repr
from robustsigma.runs.results import AttributionResults

_OF_TRAINING = ("allow", "architecture", "mean", "models", "std", "training")
_MOST_POINTS = 101  # of a curve in the report
_STABILITY = MetricSpec("stability", "Stability", "higher", "rank correlation of the heatmaps of two seeds")
_SENSITIVITY = MetricSpec(
    "max_sensitivity", "Max-sensitivity", "lower", "largest relative change of the attribution under noise on the image"
)
_SECONDS = MetricSpec("seconds", "Seconds", "lower", "time for each image, in batches, on the hardware named below")
_CURVE_TITLES = {
    "insertion": "Insertion",
    "deletion": "Deletion",
    "sic": "SIC",
    "aic": "AIC",
    "sensitivity_n": "Sensitivity-N",
}


def columns(
    metrics: Iterable[AttributionMetric], *, sanity_checks: bool, sensitivity: bool = False
) -> list[MetricColumn]:
    """Return the columns of the metrics, of the sanity checks and of the time."""
    found = [MetricColumn(each, metric.group, repr(metric)) for metric in metrics for each in metric.quantities]
    if sanity_checks:
        found.append(MetricColumn(_STABILITY, "consistency", "rank correlation of abs_sum heatmaps, mean over seeds"))
    if sanity_checks and sensitivity:
        found.append(MetricColumn(_SENSITIVITY, "consistency", "maximum over images with uniform noise of 0.02"))
    return [*found, MetricColumn(_SECONDS, "cost", "wall-clock time of the attribution alone")]


def score_tables(run: BenchmarkRun) -> dict[str, ScoreTable]:
    """Return everything that a finished run measured, by model."""
    kinds, tables = run.settings.methods, {}
    for model in run.models:
        methods = [name for name in kinds if run.store.left_out(model, name) is None]
        tables[model] = ScoreTable(
            columns(
                run.metrics,
                sanity_checks=run.settings.checked > 0,
                sensitivity=run.settings.sensitivity_samples > 0,
            ),
            run.arrays(model),
            frozenset(name for name in methods if is_control(kinds[name])),
            next(name for name in methods if isinstance(kinds[name], RandomAttribution)),
        )
    return tables


def collect(run: BenchmarkRun, tables: dict[str, ScoreTable]) -> AttributionResults:
    """Return the results of a finished run, without provenance."""
    settings, evaluated = run.settings, run.evaluated
    count, shown = len(evaluated.indices), describe(settings)
    name = data_name(settings.dataset)
    if isinstance(settings.dataset, GivenDataset):
        name = settings.dataset.name
        shown = {key: value for key, value in shown.items() if key not in _OF_TRAINING}
    protocols = next(iter(tables.values())), settings.protocol_step, run.dataset.shape[-1]
    ranked = [entry for model, table in tables.items() for entry in rankings(model, table)]
    left_out = [
        {"model": model, "method": method, "reason": reason}
        for model in run.models
        for method in settings.methods
        if (reason := run.store.left_out(model, method)) is not None
    ]
    return AttributionResults(
        settings=shown,
        dataset={
            "name": name,
            "split": settings.split,
            "classes": list(run.dataset.classes),
            "shape": list(run.dataset.shape),
            "images": count,
            "checked": min(settings.checked_batches * settings.batch_size, count),
            "passed_over": {"misclassified by a model": misclassified(evaluated.correct)},
            "masks": run.has_masks,
        },
        models=[
            {
                "id": name,
                "about": _about(run, name),
                "accuracy": as_json(share_interval(evaluated.correct[name])),
            }
            for name in run.models
        ],
        methods=[
            {"id": name, "settings": stable_repr(method), "control": is_control(method)}
            for name, method in settings.methods.items()
        ],
        left_out=left_out,
        metrics=[
            {
                "id": each.metric.name,
                "title": each.metric.title,
                "group": each.group,
                "better": each.metric.better,
                "about": each.metric.about,
                "settings": each.settings,
            }
            for each in next(iter(tables.values())).columns
        ],
        cells=[cell for model, table in tables.items() for cell in _cells(model, table)],
        curves=_curves(tables),
        sanity=[entry for model, table in tables.items() for entry in sanity_entries(model, table)],
        gallery=_gallery(run, tables),
        flags=run_flags(tables, {model: run.store.read_network(model) or [] for model in run.models}, left_out),
        verdict=verdict(tables, ranking_findings(ranked)),
        findings=[*ranking_findings(ranked), *step_findings(*protocols), *findings(tables)],
        rankings=ranked,
        protocols=protocol_entries(*protocols),
    )


def _about(run: BenchmarkRun, model: str) -> str:
    if run.classifiers is not None:
        return about(run.classifiers[model])
    return str(run.settings.models.get(model, f"{run.settings.architecture.name}, trained here"))


def misclassified(correct: dict[str, list[float]]) -> int:
    """Return how many images at least one model classifies wrongly."""
    return int((np.array(list(correct.values())).min(axis=0) == 0).sum())


def _cells(model: str, table: ScoreTable) -> Iterable[dict[str, Any]]:
    for column in table.columns:
        name, order = column.metric.name, table.ranked(column)
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
                "clear": best and table.is_clear(column),
                "against_random": None if against is None else {**as_json(against[0]), "verdict": against[1]},
                "flags": cell_flags(table, method, column),
            }


def _curves(tables: dict[str, ScoreTable]) -> list[dict[str, Any]]:
    found = []
    for name, title in _CURVE_TITLES.items():
        lines: list[dict[str, Any]] = []
        grid, axes = np.empty(0), ("", "")
        for model, table in tables.items():
            for method, arrays in table.arrays.items():
                if f"curve/{name}" not in arrays:
                    continue
                grid, axes = arrays[f"grid/{name}"], tuple(arrays[f"axes/{name}"].tolist())
                line = curve_line(name, grid, arrays[f"curve/{name}"])
                if line is not None:
                    lines.append({"model": model, "method": method, **line})
        if lines:
            x = grid[_thinned(len(grid))].tolist()
            found.append({"id": name, "title": title, "x": x, "x_title": axes[0], "y_title": axes[1], "lines": lines})
    return found


def curve_line(name: str, grid: Floats, curves: Floats) -> dict[str, Any] | None:
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


def sanity_entries(model: str, table: ScoreTable) -> Iterable[dict[str, Any]]:
    """Yield the similarity of each method's maps to those of a network with shuffled weights."""
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


def _gallery(run: BenchmarkRun, tables: dict[str, ScoreTable]) -> dict[str, Any]:
    places = run.gallery
    items = [
        {"model": model, "method": method, "converged": arrays["note/converged"][places].tolist()}
        for model, table in tables.items()
        for method, arrays in table.arrays.items()
    ]
    labels = run.evaluated.labels[places].tolist()
    return {"models": list(tables), "methods": list(run.settings.methods), "labels": labels, "items": items}


def gallery_arrays(run: BenchmarkRun, tables: dict[str, ScoreTable]) -> dict[str, np.ndarray]:
    """Return the images of the gallery, their masks if there are any, and each method's maps for each model."""
    places = run.gallery
    images, masks = run.load_images([run.evaluated.indices[place] for place in places])
    blank = np.full((len(places), *images.shape[2:]), np.nan, dtype=np.float32)
    maps = [
        [
            np.stack([table.arrays[method][f"map/{place}"] for place in places]) if method in table.arrays else blank
            for method in run.settings.methods
        ]
        for table in tables.values()
    ]
    arrays = {"images": images, "maps": np.array(maps)}
    return arrays if masks is None else {**arrays, "masks": masks >= 0.5}
