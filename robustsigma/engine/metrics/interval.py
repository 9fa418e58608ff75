"""Means with bootstrap intervals over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FEW_IMAGES = 30  # a percentile bootstrap of fewer gives intervals that are too narrow
_RESAMPLES = 2000
_CURVE_RESAMPLES = 500
_BLOCK_VALUES = 2**15  # resampled indices at once: few enough to stay in the cache


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: mean of the sample.
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
        seed: seed of the resampling.

    Raises:
        ValueError: no values, values that are not finite, or another shape.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.size == 0 or table.ndim > 2:
        raise ValueError(f"values: expected shape (n,) or (seeds, n) with at least one value, got {np.shape(values)}")
    if not np.isfinite(table).all():
        raise ValueError("values: expected finite numbers, got NaN or infinity")
    seeds, n = table.shape
    generator = np.random.default_rng(seed)
    runs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    means = np.empty(_RESAMPLES)
    block = max(1, _BLOCK_VALUES // n)
    for start in range(0, _RESAMPLES, block):
        run = runs[start : start + block]
        # How often each image was drawn is all a resample needs, since its images are the same in each of its runs.
        first = n * np.arange(len(run))[:, None]
        drawn = np.bincount((generator.integers(n, size=(len(run), n)) + first).ravel(), minlength=len(run) * n)
        means[start : start + block] = np.einsum("rn,rn->r", run @ table, drawn.reshape(-1, n)) / n
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high), n)


def share_interval(outcomes: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the share of images with outcome 1, with its 95 % interval.

    It is that of `mean_interval`. Where all outcomes are equal, resampling cannot vary them, and the exact interval of
    Clopper and Pearson (1934) for n images is used, whatever the number of seeds.

    Args:
        outcomes: (n,) or (seeds, n), 0 or 1.
        seed: seed of the resampling.

    Raises:
        ValueError: as `mean_interval`.
    """
    found = mean_interval(outcomes, seed=seed)
    if found.mean not in (0, 1):
        return found
    unseen = 1 - 0.025 ** (1 / found.n)  # the largest share that leaves so many images without one in 40 times
    return replace(found, high=unseen) if found.mean == 0 else replace(found, low=1 - unseen)


def mean_band(curves: ArrayLike, *, median: bool = False, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Return the mean curve (K,) of curves (n, K), and the low and high ends of its 95 % interval at each place.

    Images are resampled, so a band holds the intervals of all places; it is not a band for the whole curve at once.

    Args:
        curves: (n, K) finite values, a curve for each image.
        median: take the median over images instead of the mean.
        seed: seed of the resampling.

    Raises:
        ValueError: no curves, values that are not finite, or another shape.
    """
    table = np.asarray(curves, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"curves: expected finite values (n, K), at least one curve, got shape {table.shape}")
    generator = np.random.default_rng(seed)
    n = len(table)
    if median:
        drawn = (np.median(table[generator.integers(n, size=n)], axis=0) for _ in range(_CURVE_RESAMPLES))
        resampled, center = np.stack(list(drawn)), np.median(table, axis=0)
    else:
        counts = generator.multinomial(n, np.full(n, 1 / n), size=_CURVE_RESAMPLES)
        resampled, center = counts @ table / n, table.mean(axis=0)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return center, low, high


def paired_difference(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the mean of first - second over the same images, with its 95 % interval.

    Args:
        first: values as in `mean_interval`.
        second: values of the same shape, each of the same image and training as its place in `first`.
        seed: seed of the bootstrap.

    Raises:
        ValueError: two shapes, or values that `mean_interval` does not take.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"second: expected shape {a.shape}, as of first, got {b.shape}")
    return mean_interval(a - b, seed=seed)


def as_dict(interval: Interval | Sequence[float]) -> dict[str, float | int]:
    """Return an interval as plain JSON types."""
    it = interval if isinstance(interval, Interval) else mean_interval(interval)
    return {"mean": it.mean, "low": it.low, "high": it.high, "n": it.n}
