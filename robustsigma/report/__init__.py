"""Reports of a robustness evaluation and of an attribution benchmark: HTML file, figures and terminal tables."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

__all__ = [
    "print_sweep",
    "print_table",
    "write_page",
    "write_report",
]


def write_report(results: dict[str, Any], arrays: dict[str, np.ndarray], out: Path) -> Path:
    """Write `out/report.html`, which needs no other file, and its figures as `out/figures/*.png`.

    Each file is replaced atomically, so an interrupted call leaves the earlier report intact.

    Args:
        results: what an evaluation or a benchmark wrote, in plain JSON types (schema 1; a benchmark's `kind` is
            "attribution").
        arrays: of an evaluation, images and heatmaps of the sections `examples`, `path` and `explanations`; of a
            benchmark, the gallery: `images` (N, C, H, W) in [0, 1], `maps` (models, methods, N, H, W) with NaN for
            methods that were left out, and optionally `masks` (N, H, W) of bool. May be empty without these pictures.
        out: folder of the report; it is created if needed.

    Returns:
        The path of the HTML file.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
        ValueError: if `results` is not of schema 1 or an array does not fit it.
    """
    return _page().write_report(results, arrays, Path(out))


def write_page(results: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> Path:
    """Write the page of `write_report` alone, and return its path.

    Args:
        results: as in `write_report`.
        arrays: as in `write_report`.
        path: file to write, atomically.
    """
    return _page().write_page(results, arrays, path)


def print_table(results: dict[str, Any], console: Console | None = None, *, intervals: bool = False) -> None:
    """Print the accuracies of an evaluation or the scores of a benchmark, with their flags.

    Args:
        results: as in `write_report`.
        console: where to print; standard output if None.
        intervals: whether to print the interval of each accuracy.
    """
    from robustsigma.report import terminal

    if results.get("kind") == "attribution":
        terminal.print_attribution(results, console)
    else:
        terminal.print_robustness(results, console, intervals=intervals)


def print_sweep(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the accuracies of every standard deviation tried as training noise, with the best one marked.

    Args:
        results: what an evaluation wrote, or a dict with its part `sweep` alone.
        console: where to print; standard output if None.
    """
    from robustsigma.report import terminal

    terminal.print_sweep(results, console)


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
