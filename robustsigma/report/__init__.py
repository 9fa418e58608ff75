"""The report of a robustness evaluation: one HTML file, its figures, and a table in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

__all__ = ["print_table", "write_report"]


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
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The report needs {error.name}, which is not installed: pip install 'robustsigma[report]'"
        ) from error
    from robustsigma.report.html import write

    return write(results, arrays, Path(out))


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the matrix of accuracies, regimes by conditions, with the flags of each cell.

    Args:
        results: what the evaluation measured, in plain JSON types (schema 1).
        console: where to print; standard output if None.
    """
    from robustsigma.report.terminal import show

    show(results, console)
