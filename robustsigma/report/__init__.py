"""The reports of a robustness evaluation and of an attribution benchmark: HTML file, figures, terminal table."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

__all__ = [
    "AttributionReport",
    "RobustnessReport",
    "print_attribution_table",
    "print_sweep",
    "print_table",
    "write_attribution_report",
    "write_report",
]


@dataclass(frozen=True)
class _Report(os.PathLike[str]):
    """A finished report; stands for the path of its HTML file wherever one is taken."""

    path: Path
    results: dict[str, Any] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Where it lies, with `results.json`."""
        return self.path.parent

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__


class RobustnessReport(_Report):
    """What `evaluate` found: accuracies of regimes under conditions, with flags, differences and findings.

    Attributes:
        path: of the HTML file, for which it stands wherever a path is taken; figures are beside it, in `figures/`.
        results: what it shows, in plain JSON types (schema 1), as in `results.json`.
    """


class AttributionReport(_Report):
    """What `benchmark` found: scores of methods by metrics on each model, with flags and findings.

    Attributes:
        path: of the HTML file, for which it stands wherever a path is taken; figures are beside it, in `figures/`.
        results: what it shows, in plain JSON types (schema 1, kind "attribution"), as in `results.json`.
    """


def write_report(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write `out/report.html`, which needs no other file, and its figures as `out/figures/*.png`.

    Every file is written beside its final place and moved there, so an interrupted call leaves the former report.

    Args:
        results: what the evaluation measured, in plain JSON types (schema 1).
        arrays: images and heatmaps of the sections `examples`, `path` and `explanations`; may be empty.
        out: folder of the report; made if it is not there.

    Returns:
        The path of the HTML file.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
        ValueError: if `results` is not of schema 1 or an array does not fit it.
    """
    _need_extra()
    from robustsigma.report.html import write

    return write(results, arrays, Path(out))


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the matrix of accuracies, regimes by conditions, with the flags of each cell, and the sweep.

    Args:
        results: what the evaluation measured, in plain JSON types (schema 1).
        console: where to print; standard output if None.
    """
    from robustsigma.report.terminal import show

    show(results, console)


def print_sweep(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies of every standard deviation that was tried as training noise, the best one marked.

    Args:
        results: what the evaluation measured, or a dict with its part `sweep` alone.
        console: where to print; standard output if None.
    """
    from robustsigma.report.terminal import show_sweep

    show_sweep(results, console)


def write_attribution_report(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write `out/report.html`, which needs no other file, and its figures as `out/figures/attribution_*.png`.

    Every file is written beside its final place and moved there, so an interrupted call leaves the former report.

    Args:
        results: what the benchmark measured, in plain JSON types (schema 1, kind "attribution").
        arrays: of the gallery: `images` (N, C, H, W) in [0, 1], `maps` (models, methods, N, H, W) with NaN for methods
            that were left out, and perhaps `masks` (N, H, W) of bool; may be empty if the result has no gallery.
        out: folder of the report; made if it is not there.

    Returns:
        The path of the HTML file.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
        ValueError: if `results` is not of that schema and kind, or an array does not fit it.
    """
    _need_extra()
    from robustsigma.report.attribution.html import write

    return write(results, arrays, Path(out))


def print_attribution_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the scores of each model, methods by metrics, with what was skipped and the flags.

    Args:
        results: what the benchmark measured, in plain JSON types (schema 1, kind "attribution").
        console: where to print; standard output if None.

    Raises:
        ValueError: if `results` is not of that schema and kind.
    """
    from robustsigma.report.attribution.terminal import show

    show(results, console)


def _need_extra() -> None:
    """Refuse to go on without the packages of the extra `report`."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The report needs {error.name}, which is not installed: pip install 'robustsigma[report]'"
        ) from error
