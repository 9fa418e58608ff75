"""Means with bootstrap intervals over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.05  # a difference with a smaller p-value is significant
FEW_IMAGES = 30  # a percentile bootstrap of fewer gives intervals that are too narrow
_Z95 = 1.959964  # standard errors in half a 95% interval
_RESAMPLES = 2000
_CURVE_RESAMPLES = 500
_MANY_IMAGES = 2000
_FEW_PATTERNS = 1000
_BLOCK_VALUES = 2**15  # resampled indices at once: few enough to stay in the cache


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval.

    Attributes:
        mean: mean of the sample.
        low: lower end.
        high: upper end.
        n: images behind it.
        p: of a difference, the two-sided p-value of the hypothesis that it is zero; else None.

    Example:
        >>> found = mean_interval([0.0, 1.0, 1.0, 0.0, 1.0])
        >>> found.mean, found.low, found.high, found.n
    """

    mean: float
    low: float
    high: float
    n: int
    p: float | None = None


def mean_interval(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the mean over images with its 95% percentile bootstrap interval.

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
    n = table.shape[1]
    means = (_resampled if n <= _MANY_IMAGES else _resampled_many)(table, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high), n)


def _runs(generator: np.random.Generator, seeds: int) -> Floats:
    """Return the weight of each training in each resample, (R, seeds)."""
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds


@lru_cache(maxsize=4)
def _draws(seed: int, seeds: int, n: int) -> tuple[Floats, NDArray[np.uint16]]:
    """Return `_runs` and how often each resample draws each image, (R, n): the same for all values of as many images.

    How often each image was drawn is all a resample needs, since its images are the same in each of its runs.
    """
    generator = np.random.default_rng(seed)
    runs, counts = _runs(generator, seeds), np.empty((_RESAMPLES, n), np.uint16)
    block = max(1, _BLOCK_VALUES // n)
    for start in range(0, _RESAMPLES, block):
        size = min(block, _RESAMPLES - start)
        drawn = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts[start : start + size] = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
    return runs, counts


def _resampled(table: Floats, seed: int) -> Floats:
    """Return the mean of each resample: the trainings by their weights, and images drawn anew."""
    seeds, n = table.shape
    runs, counts = _draws(seed, seeds, n)
    block = max(1, _BLOCK_VALUES // n)
    parts = [counts[start : start + block].astype(np.float64) @ table.T for start in range(0, _RESAMPLES, block)]
    return np.asarray(np.einsum("rs,rs->r", runs, np.concatenate(parts)) / n)


def _resampled_many(table: Floats, seed: int) -> Floats:
    """Return the same for many images, without drawing each: its cost does not grow with resamples times images."""
    seeds, n = table.shape
    generator = np.random.default_rng(seed)
    runs = _runs(generator, seeds)
    if len(np.unique(table[0, : 2 * _FEW_PATTERNS])) <= _FEW_PATTERNS:  # of continuous values, no sort of all is needed
        # The unique rows of one column are its unique values, which are found many times as fast.
        whole = table[0] if seeds == 1 else table
        found, counts = np.unique(whole, axis=None if seeds == 1 else 1, return_counts=True)
        if len(counts) <= _FEW_PATTERNS:  # such as outcomes of 0 and 1: images of one pattern are alike
            drawn = generator.multinomial(n, counts / n, size=len(runs))
            return np.asarray(np.einsum("rk,rk->r", runs @ np.atleast_2d(found), drawn) / n)
    variance = np.einsum("rs,st,rt->r", runs, np.atleast_2d(np.cov(table, ddof=0)), runs) / n
    return runs @ table.mean(1) + np.sqrt(variance) * generator.standard_normal(len(runs))  # the central limit theorem


def share_interval(outcomes: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the share of images with outcome 1, with its 95% interval.

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
    """Return the mean curve (K,) of curves (n, K), and the low and high ends of its 95% interval at each place.

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
    n = len(table)
    if median:
        low, high = _median_ends(table)
        return np.median(table, axis=0), low, high
    center = table.mean(axis=0)
    if n > _MANY_IMAGES:  # the central limit theorem
        half = _Z95 * table.std(axis=0) / n**0.5
        return center, center - half, center + half
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_CURVE_RESAMPLES)
    low, high = np.quantile(counts @ table / n, [0.025, 0.975], axis=0)
    return center, low, high


def _median_ends(table: Floats) -> tuple[Floats, Floats]:
    """Return the 2.5 % and the 97.5 % quantile of the medians of all resamples of curves (n, K), at each place.

    They are values of the sample: the r-th smallest value of a resample is at most the k-th of the sample where r draws
    of n have one of the k smallest, each with a chance of k / n. The median of an even number of values is the mean of
    the two middle ones, and here of their quantiles.
    """
    from scipy.special import bdtrc  # imported here: the help of commands should not wait for it

    n = len(table)
    middle = (n + 1) // 2, n // 2 + 1
    chances = [bdtrc(r - 1, n, np.arange(1, n + 1) / n) for r in middle]
    places = np.array([[min(np.searchsorted(each, at), n - 1) for each in chances] for at in (0.025, 0.975)])
    ends = np.partition(table, np.unique(places), axis=0)[places].mean(1)
    return ends[0], ends[1]


def paired_difference(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the mean of first - second over the same images, with its 95% interval and p-value.

    The p-value is that of McNemar's exact test where the values are 0 or 1 and of one training, since the interval is
    too narrow where few images differ. Else it follows from the interval, see `p_value`.

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
    found = mean_interval(a - b, seed=seed)
    if found.n == a.size and np.isin(a - b, (-1, 0, 1)).all():
        from scipy.special import bdtr  # imported here: the help of commands should not wait for it

        wins, losses = int((a > b).sum()), int((a < b).sum())
        return replace(found, p=min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))))
    return replace(found, p=p_value(found))


def p_value(difference: Interval) -> float:
    """Return the two-sided p-value of the hypothesis that a difference is zero.

    It is `difference.p`, or follows from the interval where that is None, as in results of earlier versions: the half
    of the interval on the side of zero is read as 1.96 standard errors (Altman and Bland, BMJ 343:d2304, 2011), so that
    the value is below .05 exactly where the interval excludes zero.

    Args:
        difference: as `paired_difference` returns it.

    Example:
        >>> round(p_value(Interval(0.03, 0.01, 0.05, n=500)), 4)
        0.0033
    """
    if difference.p is not None:
        return difference.p
    if difference.mean == 0:
        return 1.0
    half = difference.mean - difference.low if difference.mean > 0 else difference.high - difference.mean
    if half <= 0:  # all images differ by the same amount: the sign test
        return min(1.0, 2.0 ** (1 - difference.n))
    return math.erfc(_Z95 * abs(difference.mean) / half / math.sqrt(2))


def holm(differences: Sequence[Interval | None]) -> list[float]:
    """Return the p-values of a family of differences, corrected for their number by Holm's method (1979).

    A difference is significant where its value is below .05: the chance that any difference of the family that is truly
    zero becomes significant is then at most 5%.

    Args:
        differences: the whole family, as `paired_difference` returns them; None stands for one that was not measured,
            does not count, and gets the value 1.

    Example:
        >>> [round(p, 4) for p in holm([Interval(0.03, 0.01, 0.05, n=500), Interval(0.01, 0.0, 0.02, n=500)])]
        [0.0066, 0.05]
    """
    values = [1.0 if each is None else p_value(each) for each in differences]
    measured = [place for place, each in enumerate(differences) if each is not None]
    corrected, largest = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(measured, key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(measured) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def significance(differences: Sequence[Interval | None]) -> list[int]:
    """Return for each difference of a family whether it is significant after `holm`: its sign (1 or -1), else 0.

    Args:
        differences: the whole family, as in `holm`.

    Example:
        >>> significance([Interval(0.03, 0.01, 0.05, n=500), Interval(-0.01, -0.02, 0.01, n=500)])
        [1, 0]
    """
    signs = [0 if each is None else (each.mean > 0) - (each.mean < 0) for each in differences]
    return [sign if p < LEVEL else 0 for sign, p in zip(signs, holm(differences), strict=True)]


def as_dict(interval: Interval | Sequence[float]) -> dict[str, float | int]:
    """Return an interval as plain JSON types."""
    it = interval if isinstance(interval, Interval) else mean_interval(interval)
    found = {"mean": it.mean, "low": it.low, "high": it.high, "n": it.n}
    return found if it.p is None else {**found, "p": it.p}


def from_dict(entry: Mapping[str, Any]) -> Interval | None:
    """Return the interval of an entry that `as_dict` is part of, or None where it was not measured."""
    found: dict[str, Any] = {key: entry.get(key) for key in ("mean", "low", "high", "n")}
    return None if None in found.values() else Interval(**found, p=entry.get("p"))
