"""Bootstrap intervals and image distances."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_1samp

from robustsigma.engine.metrics import (
    Interval,
    holm,
    interval,
    linf,
    mean_interval,
    p_value,
    paired_difference,
    rmse,
    share_interval,
    ssim,
)
from robustsigma.engine.metrics.interval import as_dict


def coverage(draw, truth: float, trials: int = 300) -> float:
    """Return how often the interval of a fresh sample holds the truth."""
    generator = np.random.default_rng(1)
    intervals = [mean_interval(draw(generator), seed=trial) for trial in range(trials)]
    return float(np.mean([it.low <= truth <= it.high for it in intervals]))


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda g: g.normal(3.0, 2.0, 60), 3.0),
        (lambda g: g.random(80) < 0.7, 0.7),
        (lambda g: g.exponential(1.0, 80), 1.0),
    ],
    ids=["normal", "accuracy", "skewed"],
)
def test_coverage_is_near_95_percent(draw, truth):
    # 300 trials: a standard error of 1.3 %; the percentile interval is known to be a little narrow at small n.
    assert 0.89 <= coverage(draw, truth) <= 0.985


def test_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(0).normal(0, 1, 2000)
    it = mean_interval(values)
    half = 1.96 * values.std() / 2000**0.5
    assert it.mean == pytest.approx(values.mean())
    assert it.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert it.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert it.n == 2000


def test_paired_difference_is_tighter_than_two_intervals():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 1, 200)  # how hard an image is, for both
    a, b = hard + 0.1 + generator.normal(0, 0.05, 200), hard + generator.normal(0, 0.05, 200)
    difference, alone = paired_difference(a, b), mean_interval(a)
    assert difference.mean == pytest.approx((a - b).mean())
    assert 0 < difference.low < 0.1 < difference.high < 0.15
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)


def test_seeds_widen_the_interval():
    """Trainings that disagree must show, however many images there are."""
    generator = np.random.default_rng(0)
    table = generator.normal(0, 0.01, (5, 1000)) + np.array([[0.0], [0.1], [0.2], [0.3], [0.4]])
    it = mean_interval(table)
    assert it.mean == pytest.approx(table.mean())
    assert it.n == 1000
    # The standard error over five seeds is 0.141 / sqrt 5.
    assert it.high - it.low == pytest.approx(2 * 1.96 * table.mean(1).std() / 5**0.5, rel=0.1)
    assert it.high - it.low > 20 * (mean_interval(table[0]).high - mean_interval(table[0]).low)


def test_one_seed_is_no_seed():
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values[None]) == mean_interval(values)


def test_determinism_and_seed():
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values) == mean_interval(values.tolist()) == mean_interval(torch.from_numpy(values))
    assert mean_interval(values, seed=1) != mean_interval(values)


def test_constant_values_have_a_point_interval():
    assert mean_interval([1, 1, 1]) == Interval(1.0, 1.0, 1.0, 3)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_share_of_none_or_all_has_the_exact_interval(seeds):
    none, all_ = (share_interval(np.full((seeds, 400), outcome)) for outcome in (0, 1))
    assert (none.mean, none.low, all_.mean, all_.high) == (0, 0, 1, 1)
    # Of so many images none is seen in 2.5 % of the draws.
    assert (1 - none.high) ** 400 == pytest.approx(0.025)
    assert all_.low == pytest.approx(1 - none.high)
    some = np.arange(400) < 3
    assert share_interval(some) == mean_interval(some)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"values: expected shape \(n,\) or \(seeds, n\) with at least one value, got \(0,\)"),
        (np.zeros((2, 3, 4)), r"got \(2, 3, 4\)"),
        ([0.5, float("nan")], "values: expected finite numbers, got NaN or infinity"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values)


def test_bad_pair():
    with pytest.raises(ValueError, match=r"second: expected shape \(2,\), as of first, got \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.random((1, 2400)) < 0.003,
        lambda rng: (rng.random((1, 2400)) < rng.random((3, 1)) * 0.2).astype(float),
        lambda rng: rng.exponential(1.0, (1, 2400)),
        lambda rng: rng.normal(0.0, 1.0, (4, 2400)) + rng.normal(0.0, 0.1, (4, 1)),
    ],
    ids=["rare", "trainings", "skewed", "continuous trainings"],
)
def test_many_images_have_the_interval_of_the_bootstrap(draw, monkeypatch):
    values = draw(np.random.default_rng(0))
    fast = mean_interval(values)
    monkeypatch.setattr(interval, "_MANY_IMAGES", 10**9)
    exact = mean_interval(values)
    width = exact.high - exact.low
    assert fast.mean == exact.mean
    assert fast.low == pytest.approx(exact.low, abs=0.06 * width)
    assert fast.high == pytest.approx(exact.high, abs=0.06 * width)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (10, 2), (40, 10), (7, 7)])
def test_p_value_of_one_training_is_mcnemars(wins, losses):
    first, second = np.zeros(500), np.zeros(500)
    first[:wins] = second[wins : wins + losses] = 1
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1
    assert p_value(paired_difference(first, second)) == pytest.approx(expected)
    assert p_value(paired_difference(second, first)) == pytest.approx(expected)


def test_p_value_without_counts_follows_the_interval():
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    found = paired_difference(values, np.zeros(400))
    assert p_value(found) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=0.5)
    assert p_value(Interval(0.5, 0.0, 1.0, 20)) == pytest.approx(0.05, abs=1e-6)
    assert p_value(Interval(-0.2, -0.2, -0.2, 6)) == 2**-5
    assert p_value(Interval(0.0, -1.0, 1.0, 6)) == 1


def test_p_value_of_several_trainings_covers_them():
    rng = np.random.default_rng(0)
    gain = (rng.random((3, 300)) < [[0.5], [0.55], [0.75]]).astype(float)
    one = paired_difference(gain.mean(0), np.full(300, 0.5))
    assert p_value(paired_difference(gain, np.full((3, 300), 0.5))) > 10 * p_value(one)


def test_holm_by_hand():
    family = [Interval(0, 0, 0, 9, p=p) for p in (0.01, 0.04, 0.03, 0.005)]
    assert holm(family) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([family[0], None, family[3]]) == pytest.approx([0.01, 1, 0.01])
    assert holm([]) == []


def test_holm_keeps_the_error_of_a_family():
    drawn = np.random.default_rng(0).random((2000, 8))  # p-values of differences that are truly zero
    wrong = sum(min(holm([Interval(0, 0, 0, 9, p=p) for p in family])) < 0.05 for family in drawn)
    assert 60 < wrong < 135  # 98 are expected; without the correction 673


def test_as_dict():
    assert as_dict([1.0, 1.0]) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}


# Image distances


def test_rmse_and_linf_in_closed_form():
    x = cases.images(3, dtype=torch.float64)
    y = x.clone()
    y[1] += 0.25
    y[2, 1, 3, 4] -= 0.5
    assert torch.allclose(rmse(y, x), torch.tensor([0, 0.25, 0.5 / 192**0.5], dtype=torch.float64))
    assert torch.allclose(linf(y, x), torch.tensor([0, 0.25, 0.5], dtype=torch.float64))


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (1, 2), (3, 8), (4, 11), (2, 30)])
def test_ssim_of_equal_and_constant_images(channels, size):
    x = cases.images(3, channels=channels, size=size)
    assert torch.allclose(ssim(x, x), torch.ones(3))
    # Without structure only the means compare: (2ab + c1) / (a^2 + b^2 + c1).
    a, b = 0.3, 0.6
    flat = torch.full_like(x, a, dtype=torch.float64), torch.full_like(x, b, dtype=torch.float64)
    wanted = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert torch.allclose(ssim(*flat), torch.full((3,), wanted, dtype=torch.float64))
    # Flat areas are where single precision loses most digits.
    edge = torch.cat([torch.ones_like(x), x, 1 - x])
    assert (ssim(edge, 1 - edge) - ssim(edge.double(), 1 - edge.double())).abs().max() < 1e-4


def test_ssim_is_per_image_symmetric_and_falls_with_noise():
    x, other = cases.images(4, size=16), cases.images(4, size=16, seed=1)
    mixed = [ssim(x + t * (other - x), x) for t in (0.1, 0.3, 1.0)]
    assert (mixed[0] > mixed[1]).all()
    assert (mixed[1] > mixed[2]).all()
    assert torch.allclose(ssim(x, other), ssim(other, x))
    assert torch.allclose(ssim(x, other)[2], ssim(x[2:3], other[2:3])[0])


@pytest.mark.reference
@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 3, 40, 24)])
def test_ssim_against_torchmetrics(shape):
    from torchmetrics.functional.image import structural_similarity_index_measure

    source = cases.generator(0)
    x = torch.rand(shape, generator=source, dtype=torch.float64)
    y = (x + 0.2 * torch.randn(shape, generator=source, dtype=torch.float64)).clamp(0, 1)
    _, full = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none", return_full_image=True)
    # torchmetrics averages over reflected borders too; the paper, as we, over full windows.
    theirs = full[..., 5:-5, 5:-5].flatten(1).mean(1)
    assert torch.allclose(ssim(x, y), theirs, atol=1e-9)


@pytest.mark.parametrize("measure", [rmse, linf, ssim])
def test_shapes_must_agree(measure):
    x = cases.images()
    with pytest.raises(
        ValueError, match=r"x: expected \(B, C, H, W\), as original, .* \(1, 3, 8, 8\), got \(4, 3, 8, 8\)"
    ):
        measure(x, x[:1])
