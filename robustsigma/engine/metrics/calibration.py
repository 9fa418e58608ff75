"""Calibration: whether predictions with a confidence of 80% are correct four times in five."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustsigma.engine import validation
from robustsigma.engine.metrics.interval import Interval

Floats = NDArray[np.float64]

BINS = 15
_RESAMPLES = 500
_MANY_IMAGES = 2000


def calibration_error(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS, seed: int = 0) -> Interval:
    """Return the expected calibration error with its 95% bootstrap interval over images.

    sum over bins of n_b / n * |accuracy_b - confidence_b|, over bins of equal width, each open below and closed above
    (Guo et al., 2017, equation 3; they take 15 bins). 0 is calibrated, 1 is always wrong with confidence 1. The error
    of few images is too high on average, and that of a resample by about as much again. The interval is therefore the
    basic one, which mirrors the resamples at the estimate (Davison and Hinkley, 1997, equation 5.6), cut to [0, 1]. It
    begins at 0 where a calibrated classifier with these confidences would show such an error by chance more often than
    once in 40 times.

    Args:
        confidence: (n,) softmax of the predicted class, in [0, 1]; or (seeds, n), repeated trainings on the
            same images: the mean of their errors, with seeds and images resampled.
        correct: 1 where the prediction is correct, else 0; of the same shape.
        bins: number of bins.
        seed: seed of the resampling.

    Raises:
        ValueError: no values, another shape, or values out of their range.
    """
    validation.integer("bins", bins, 1)
    top, matches = (np.atleast_2d(np.asarray(values, np.float64)) for values in (confidence, correct))
    if top.size == 0 or top.ndim > 2 or top.shape != matches.shape:
        got = f"{np.shape(confidence)} and {np.shape(correct)}"
        raise validation.fail("confidence, correct", "equal shapes (n,) or (seeds, n), at least one value", got)
    _within("confidence", top, (top >= 0) & (top <= 1), "values in [0, 1]")
    _within("correct", matches, (matches == 0) | (matches == 1), "values 0 or 1")
    n = top.shape[1]
    places = bin_of(top, bins)
    parts = np.zeros((*top.shape, bins))  # each image's part of its bin's n_b * (accuracy_b - confidence_b)
    np.put_along_axis(parts, places[..., None], (matches - top)[..., None], axis=2)
    found = float(np.abs(parts.sum(1)).sum(1).mean() / n)
    errors, chance = (_resampled if n <= _MANY_IMAGES else _resampled_many)(top, parts, places, seed)
    low, high = 2 * found - np.quantile(errors, [0.975, 0.025])
    low = 0.0 if found <= np.quantile(chance, 0.975) else low
    return Interval(found, float(np.clip(low, 0, found)), float(np.clip(high, found, 1)), n)


@lru_cache(maxsize=1)
def _draws(seed: int, seeds: int, n: int) -> tuple[Floats, Floats, Floats]:
    """Return the weight of each training, and how often each image was drawn and with what luck, in each resample."""
    generator = np.random.default_rng(seed)
    runs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    counts = generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    return runs, counts, generator.random((seeds, _RESAMPLES, n))


def _resampled(top: Floats, parts: Floats, places: NDArray[np.int64], seed: int) -> tuple[Floats, Floats]:
    """Return the error of each resample, and errors that a calibrated classifier shows by chance."""
    seeds, n, bins = parts.shape
    runs, counts, luck = _draws(seed, seeds, n)
    errors = np.einsum("rs,srb->r", runs, np.abs(counts @ parts))
    lucky = ((luck < top[:, None]) - top[:, None]) @ (places[..., None] == np.arange(bins)).astype(np.float64)
    return errors / n, np.abs(lucky).sum((0, 2)) / n / seeds


def _resampled_many(top: Floats, parts: Floats, places: NDArray[np.int64], seed: int) -> tuple[Floats, Floats]:
    """Return the same for many images, whose sums are normal by the central limit theorem."""
    seeds, n, bins = parts.shape
    generator = np.random.default_rng(seed)
    runs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_RESAMPLES) / seeds
    flat = np.moveaxis(parts, 1, 2).reshape(seeds * bins, n)
    sums = generator.multivariate_normal(flat.sum(1), n * np.cov(flat, ddof=0), _RESAMPLES, method="svd")
    errors = np.einsum("rs,rsb->r", runs, np.abs(sums.reshape(_RESAMPLES, seeds, bins)))
    spread = [np.bincount(at, own * (1 - own), bins) for at, own in zip(places, top, strict=True)]
    lucky = generator.standard_normal((_RESAMPLES, seeds, bins)) * np.sqrt(spread)
    return errors / n, np.abs(lucky).sum((1, 2)) / n / seeds


def bin_of(confidence: ArrayLike, bins: int = BINS) -> NDArray[np.int64]:
    """Return the number of each confidence's bin, from 0: bin b holds (b / bins, (b + 1) / bins], the first also 0."""
    return np.clip(np.ceil(np.asarray(confidence, np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)


def _within(name: str, values: Floats, good: NDArray[np.bool_], expected: str) -> None:
    if not good.all():
        raise validation.fail(name, expected, values[~good].flat[0])
