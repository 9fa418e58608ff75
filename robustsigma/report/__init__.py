"""Reports of a robustness evaluation and of an attribution benchmark: HTML file, figures and terminal tables."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

__all__ = [
    "print_attribution_table",
    "print_sweep",
    "print_table",
    "write_attribution_report",
    "write_page",
    "write_report",
]


def write_report(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write `out/report.html`, which needs no other file, and its figures as `out/figures/*.png`.

    Each file is replaced atomically, so an interrupted call leaves the earlier report intact.

    Args:
        results: what an evaluation wrote, in plain JSON types (schema 1).
        arrays: images and heatmaps of the sections `examples`, `path` and `explanations`; may be empty.
        out: folder of the report; it is created if needed.

    Returns:
        The path of the HTML file.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
        ValueError: if `results` is not of schema 1 or an array does not fit it.
    """
    return _page().write_robustness(results, arrays, Path(out))


def write_page(results: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> Path:
    """Write the page of `write_report` or `write_attribution_report` alone, and return its path.

    Args:
        results: as in these.
        arrays: as in these.
        path: file to write, atomically.
    """
    return _page().write_page(results, arrays, path)


def print_table(results: dict[str, Any], console: Console | None = None, *, intervals: bool = False) -> None:
    """Print the accuracies of an evaluation with the flags of each cell, and its sweep.

    Args:
        results: what an evaluation wrote, as in `write_report`.
        console: where to print; standard output if None.
        intervals: whether to print the interval of each accuracy.
    """
    from robustsigma.report import terminal

    terminal.print_robustness(results, console, intervals=intervals)


def print_sweep(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies of every standard deviation tried as training noise, with the best one marked.

    Args:
        results: what an evaluation wrote, or a dict with its part `sweep` alone.
        console: where to print; standard output if None.
    """
    from robustsigma.report import terminal

    terminal.print_sweep(results, console)


def write_attribution_report(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write `out/report.html` and its figures like `write_report`, for a benchmark.

    Args:
        results: what a benchmark wrote, in plain JSON types (schema 1, kind "attribution").
        arrays: the gallery: `images` (N, C, H, W) in [0, 1], `maps` (models, methods, N, H, W) with NaN for methods
            that were left out, and optionally `masks` (N, H, W) of bool; may be empty if there is no gallery.
        out: folder of the report; it is created if needed.
    """
    return _page().write_attribution(results, arrays, Path(out))


def print_attribution_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the scores of each model, methods by metrics, with the skipped images and the flags.

    Args:
        results: what a benchmark wrote, as in `write_attribution_report`.
        console: where to print; standard output if None.
    """
    from robustsigma.report import terminal

    terminal.print_attribution(results, console)


def _page() -> ModuleType:
    """Return the module that writes pages; it needs the packages of the extra `report`."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The report needs {error.name}, which is not installed: pip install 'robustsigma[report]'"
        ) from error
    from robustsigma.report import page

    return page
