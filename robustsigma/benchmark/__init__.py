"""Attribution benchmark: attribution methods against metrics on one or more models."""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma.benchmark.pipeline import benchmark
    from robustsigma.benchmark.settings import Benchmark
    from robustsigma.report import AttributionReport
    from robustsigma.runs.results import AttributionResults

_MODULES = {
    "robustsigma.benchmark.pipeline": ("benchmark",),
    "robustsigma.benchmark.settings": ("Benchmark",),
    "robustsigma.report": ("AttributionReport",),
    "robustsigma.runs.results": ("AttributionResults",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
