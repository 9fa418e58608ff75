"""Benchmarks from YAML; the embedded datasets have presets."""

from __future__ import annotations

from robustsigma.benchmark.settings import Benchmark
from robustsigma.parser import Presets

PRESETS = Presets(Benchmark, "robustsigma.benchmark")


def preset(name: str = "baggage") -> Benchmark:
    """Return the settings of an embedded dataset.

    Args:
        name: "baggage", "digits" or "mnist5k".

    Raises:
        ValueError: another name.
    """
    return PRESETS.load(name)
