"""Attribution benchmark: attribution methods against metrics on one or more models."""

from robustsigma.benchmark.benchmark import benchmark
from robustsigma.benchmark.parsing import preset
from robustsigma.benchmark.settings import Benchmark
from robustsigma.report import AttributionReport
from robustsigma.runs.results import AttributionResults

__all__ = ["AttributionReport", "AttributionResults", "Benchmark", "benchmark", "preset"]
