"""Attributors against metrics: the attribution benchmark."""

from robustsigma.benchmark.benchmark import benchmark
from robustsigma.benchmark.parsing import preset
from robustsigma.benchmark.settings import Benchmark
from robustsigma.report import AttributionReport

__all__ = ["AttributionReport", "Benchmark", "benchmark", "preset"]
