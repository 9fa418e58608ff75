"""Means with bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: of the sample.
        low: lower end.
        high: upper end.
        n: images behind it.
    """

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the mean over images with its 95 % percentile bootstrap interval.

    Args:
        values: (n,) one value per image, or (seeds, n): repeated trainings on the same images. Seeds and images are
            then both resampled, so the interval covers training as well.
        seed: of the resampling.

    Raises:
        ValueError: no values.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.size == 0:
        raise ValueError("values: expected at least one, got none")
    seeds, n = table.shape
    generator = np.random.default_rng(seed)
    # Resampling n items with replacement is drawing multinomial counts: a matrix product instead of an index array.
    images = generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    runs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    means = np.einsum("rs,sn,rn->r", runs, table, images, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high), n)


def paired_difference(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the mean of first - second over the same images, with its 95 % interval; shapes as in `mean_interval`."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"second: expected shape {a.shape}, as of first, got {b.shape}")
    return mean_interval(a - b, seed=seed)


def as_dict(interval: Interval | Sequence[float]) -> dict[str, float | int]:
    """Return an interval as plain JSON types."""
    it = interval if isinstance(interval, Interval) else mean_interval(interval)
    return {"mean": it.mean, "low": it.low, "high": it.high, "n": it.n}
