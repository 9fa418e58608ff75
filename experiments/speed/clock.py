"""Seconds, and ratios of them that a busy machine distorts least: what is compared is timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from robustsigma.device import wait

T = TypeVar("T")


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Return the seconds that a call takes until the device is done, and its result."""
    wait(device)
    start = time.perf_counter()
    result = call()
    wait(device)
    return time.perf_counter() - start, result


def summary(values: Iterable[float]) -> dict[str, Any]:
    """Return median, extremes and the values of one quantity over repeats."""
    found = [float(value) for value in values]
    return {"median": statistics.median(found), "low": min(found), "high": max(found), "repeats": found}


@contextmanager
def threads(count: int):
    """Compute with so many threads in the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
