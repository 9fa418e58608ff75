"""The expected calibration error and its interval."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robustsigma.engine.metrics import calibration
from robustsigma.engine.metrics.calibration import bin_of, calibration_error


def by_hand(confidence, correct, bins=15):
    total, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_it_is_the_weighted_gap_of_the_bins(bins):
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.01, 1, 300)
    correct = generator.random(300) < 0.6
    found = calibration_error(confidence, correct, bins=bins)
    assert found.mean == pytest.approx(by_hand(confidence, correct, bins), abs=1e-12)
    assert found.n == 300
    assert found.low <= found.mean <= found.high


@pytest.mark.parametrize(
    ("confidence", "correct", "error"),
    [([1.0] * 8, [1] * 8, 0), ([1.0] * 8, [0] * 8, 1), ([0.75] * 4, [1, 1, 1, 0], 0), ([0.9] * 4, [1, 1, 0, 0], 0.4)],
)
def test_known_errors(confidence, correct, error):
    assert calibration_error(confidence, correct).mean == pytest.approx(error, abs=1e-12)


def test_bins_are_open_below_and_closed_above():
    assert bin_of([0.0, 0.1, 0.5, 0.51, 1.0], 2).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("slope", [1.0, 0.7])
def test_the_interval_holds_the_truth(slope):
    """Both for a calibrated classifier, whose error of 200 images is some 7 %, and for an overconfident one."""
    generator = np.random.default_rng(1)
    confidence, held = generator.beta(5, 1.5, 200_000), 0
    gap = np.bincount(bin_of(confidence), (1 - slope) * confidence, minlength=15)
    truth = np.abs(gap).sum() / len(confidence)
    for _ in range(100):
        some = generator.choice(confidence, 200)
        found = calibration_error(some, generator.random(200) < slope * some)
        held += found.low <= truth <= found.high
    assert held >= 86  # of 95 expected; the standard error is 2.2


@pytest.mark.parametrize("seeds", [1, 3])
def test_many_images_have_the_interval_of_the_resamples(seeds, monkeypatch):
    rng = np.random.default_rng(0)
    confidence = rng.beta(5, 1.5, (seeds, 2400))
    correct = rng.random(confidence.shape) < 0.8 * confidence
    fast = calibration_error(confidence, correct)
    monkeypatch.setattr(calibration, "_MANY_IMAGES", 10**9)
    exact = calibration_error(confidence, correct)
    assert fast.mean == exact.mean
    assert (fast.low, fast.high) == pytest.approx((exact.low, exact.high), abs=0.1 * (exact.high - exact.low))


def test_seeds_are_trainings_of_their_own():
    """Errors of two trainings in opposite directions do not cancel."""
    confidence = np.full((2, 100), 0.5)
    correct = np.stack([np.ones(100), np.zeros(100)])
    assert calibration_error(confidence, correct).mean == pytest.approx(0.5)
    assert calibration_error(confidence.ravel(), correct.ravel()).mean == pytest.approx(0)


def test_what_chance_gives_several_seeds_is_the_mean():
    """An error of 0.06, where chance gives a calibrated training less than 0.05."""
    correct = np.arange(400) < 296
    for seeds in (1, 2):
        assert calibration_error(np.full((seeds, 400), 0.8), np.stack([correct] * seeds)).low > 0


def test_equal_seeds_give_equal_intervals():
    values = np.linspace(0.2, 1, 50), np.arange(50) % 3 > 0
    assert calibration_error(*values, seed=3) == calibration_error(*values, seed=3)
    assert calibration_error(*values, seed=3) != calibration_error(*values, seed=4)


@pytest.mark.parametrize(
    ("confidence", "correct", "named"),
    [
        ([], [], "confidence, correct"),
        ([0.5], [1, 0], "confidence, correct"),
        ([1.5], [1], "confidence"),
        ([float("nan")], [1], "confidence"),
        ([0.5], [0.5], "correct"),
    ],
)
def test_bad_arguments(confidence, correct, named):
    with pytest.raises(ValueError, match=rf"^{named}: expected .*got "):
        calibration_error(confidence, correct)
