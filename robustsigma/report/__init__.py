"""Reports of a robustness evaluation and of an attribution benchmark: HTML file, figures and terminal tables."""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma.report.page import write_page, write_report
    from robustsigma.report.terminal import print_sweep, print_table

_MODULES = {
    "robustsigma.report.page": ("write_page", "write_report"),
    "robustsigma.report.terminal": ("print_sweep", "print_table"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
