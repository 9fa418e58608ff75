"""Calibration: whether predictions with a confidence of 80% are correct four times in five."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustsigma.engine import validation
from robustsigma.engine.metrics.interval import Interval

Floats = NDArray[np.float64]

BINS = 15
_RESAMPLES = 500
_BLOCK_VALUES = 2**22  # counts at once


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
    seeds, n = top.shape
    gaps = np.zeros((seeds, n, bins))  # each image's part of its bin's n_b * (accuracy_b - confidence_b)
    np.put_along_axis(gaps, bin_of(top, bins)[..., None], (matches - top)[..., None], axis=2)
    found = float(np.abs(gaps.sum(1)).sum(1).mean() / n)
    generator = np.random.default_rng(seed)
    errors, chance = np.empty(_RESAMPLES), np.zeros(_RESAMPLES)
    block = max(1, _BLOCK_VALUES // n)
    for start in range(0, _RESAMPLES, block):
        size = min(block, _RESAMPLES - start)
        runs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        each = np.stack([np.abs(counts @ part).sum(1) / n for part in gaps])
        errors[start : start + size] = np.einsum("rs,sr->r", runs, each)
        for confidences in top:
            lucky = (generator.random((size, n)) < confidences) - confidences
            sums = np.stack([lucky @ (bin_of(confidences, bins) == number) for number in range(bins)])
            chance[start : start + size] += np.abs(sums).sum(0) / n / seeds
    low, high = 2 * found - np.quantile(errors, [0.975, 0.025])
    low = 0.0 if found <= np.quantile(chance, 0.975) else low
    return Interval(found, float(np.clip(low, 0, found)), float(np.clip(high, found, 1)), n)


def bin_of(confidence: ArrayLike, bins: int = BINS) -> NDArray[np.int64]:
    """Return the number of each confidence's bin, from 0: bin b holds (b / bins, (b + 1) / bins], the first also 0."""
    return np.clip(np.ceil(np.asarray(confidence, np.float64) * bins) - 1, 0, bins - 1).astype(np.int64)


def _within(name: str, values: Floats, good: NDArray[np.bool_], expected: str) -> None:
    if not good.all():
        raise validation.fail(name, expected, values[~good].flat[0])
