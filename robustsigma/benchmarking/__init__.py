"""Attribution benchmark: attribution methods against metrics on one or more models."""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma.benchmarking.attribution_report import AttributionReport
    from robustsigma.benchmarking.method_comparison import benchmark
    from robustsigma.benchmarking.pipeline import run_benchmark
    from robustsigma.benchmarking.protocols import PROTOCOLS, protocol
    from robustsigma.benchmarking.settings import Benchmark
    from robustsigma.benchmarking.stored_maps import StoredMaps
    from robustsigma.runs.results import AttributionResults

_MODULES = {
    "robustsigma.benchmarking.attribution_report": ("AttributionReport",),
    "robustsigma.benchmarking.method_comparison": ("benchmark",),
    "robustsigma.benchmarking.pipeline": ("run_benchmark",),
    "robustsigma.benchmarking.protocols": ("PROTOCOLS", "protocol"),
    "robustsigma.benchmarking.settings": ("Benchmark",),
    "robustsigma.benchmarking.stored_maps": ("StoredMaps",),
    "robustsigma.runs.results": ("AttributionResults",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
