"""Scores of an experiment's benchmark in plain JSON types."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from robustsigma.benchmarking import Benchmark
from robustsigma.benchmarking.results import score_tables
from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.benchmarking.table import ScoreTable
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.models import Pretrained
from robustsigma.models.pretrained import is_saved


def run_benchmark(asked: Benchmark, folder: Path) -> tuple[BenchmarkRun, dict[str, ScoreTable]]:
    """Return a finished benchmark and what it measured, by network; it resumes."""
    asked = dataclasses.replace(asked, keep_maps=True)  # for pictures
    run = BenchmarkRun(asked, folder, Console(quiet=not sys.stderr.isatty(), stderr=True))
    run.run()
    return run, score_tables(run)


def cells(tables: Mapping[str, ScoreTable]) -> list[dict[str, Any]]:
    """Return every mean with its interval and count, and how often an image had no value."""
    found = []
    for model, table in tables.items():
        for column in table.columns:
            name = column.metric.name
            for method in table.arrays:
                at = table.interval(method, name)
                key = {"model": model, "method": method, "metric": name}
                numbers = {} if at is None else as_dict(at)
                found.append({**key, **numbers, "skipped": table.skipped(method, name)})
    return found


def advantages(tables: Mapping[str, ScoreTable], method: str, metrics: Iterable[str]) -> list[dict[str, Any]]:
    """Return by how much a method is better than each other one, paired over images: positive is better."""
    found = []
    for model, table in tables.items():
        for column in table.columns:
            for other in table.arrays if column.metric.name in metrics else ():
                if other == method or method not in table.arrays:
                    continue
                gain = table.advantage(method, other, column)
                key = {"model": model, "over": other, "metric": column.metric.name}
                found.append({**key, **({} if gain is None else as_dict(gain))})
    return found


def about(run: BenchmarkRun) -> dict[str, Any]:
    """Return what was evaluated, without the places of files."""
    asked = run.settings
    images = dataclasses.replace(run.settings.dataset, **_named(run.settings.dataset))  # type: ignore[type-var]
    return {
        "images": len(run.evaluated.indices),
        "tried": run.evaluated.tried,
        "source": repr(images),
        "models": {name: _shown(model) for name, model in asked.models.items()},
        "accuracy": {name: sum(correct) / len(correct) for name, correct in run.evaluated.correct.items()},
        "methods": {name: repr(method) for name, method in run.settings.methods.items()},
        "metrics": [repr(metric) for metric in asked.metrics],
    }


def _named(images: DatasetSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"root": Path(images.root).name} if hasattr(images, "root") else {}
    return found | ({"class_list": None} if getattr(images, "class_list", None) else {})


def _shown(model: str | Pretrained) -> str:
    return str(model) if isinstance(model, Pretrained) else Path(model).name if is_saved(model) else model
