"""What a result says of itself, and what running a method again says."""

from __future__ import annotations

import dataclasses

import cases
import metric_cases
import numpy as np
import pytest
import torch

from robustsigma import Gradient, IntegratedGradients, RandomAttribution, Sigma
from robustsigma.engine.metrics import (
    CompletenessGap,
    Cost,
    RelativeStandardError,
    Skip,
    mean_band,
    randomization,
    shuffle_parameters,
    stability,
)

WALK = Sigma(alpha=0.05, beta=0.1, epsilon=0.05, objective="logit", paths=3, max_steps=6)


def explained(subject, method):
    return method(subject.classifier, subject.images, subject.target, seed=7)


def test_bookkeeping_is_the_results_own():
    subject = metric_cases.subject()
    result = explained(subject, WALK)
    assert result.stderr is not None
    gap = (result.values.flatten(1).sum(1) - result.drop).abs() / result.drop.abs()
    torch.testing.assert_close(CompletenessGap()(subject, result).values["completeness_gap"], gap.double())
    error = result.stderr.flatten(1).sum(1) / result.values.abs().flatten(1).sum(1)
    found = RelativeStandardError()(subject, result).values["relative_stderr"]
    torch.testing.assert_close(found, error.double(), rtol=1e-5, atol=0)
    passes = Cost()(subject, result).values
    assert passes["forwards"].tolist() == result.forwards.tolist()
    assert passes["backwards"].tolist() == result.backwards.tolist()
    still = dataclasses.replace(result, values=0 * result.values, drop=0 * result.drop)
    for metric, name in ((CompletenessGap(), "completeness_gap"), (RelativeStandardError(), "relative_stderr")):
        found = metric(subject, still)
        assert found.values[name].isnan().all()
        assert (found.skipped(name) == Skip.NO_DROP).all()


def test_stability():
    subject = metric_cases.subject()
    for method, skip in ((Gradient(), Skip.NOT_STOCHASTIC), (IntegratedGradients(), Skip.NOT_STOCHASTIC)):
        found = stability(subject, method, explained(subject, method))
        assert found.values["stability"].isnan().all()
        assert (found.skipped("stability") == skip).all()
    random = stability(subject, RandomAttribution(), explained(subject, RandomAttribution()), seeds=3)
    assert (random.values["stability"].abs() < 0.2).all()
    few, many = (dataclasses.replace(WALK, paths=paths) for paths in (1, 12))
    noisy, calm = (stability(subject, m, explained(subject, m)).values["stability"].mean() for m in (few, many))
    assert calm > noisy
    with pytest.raises(ValueError, match=r"^seeds: expected"):
        stability(subject, WALK, explained(subject, WALK), seeds=0)


def test_a_method_that_ignores_the_network_is_found_out():
    net = cases.mlp(size=16)
    images, labels, _ = metric_cases.scene(4)
    subject = metric_cases.MetricContext(cases.classifier(net), images, labels)
    shuffled = shuffle_parameters(subject.classifier, 5)
    same = randomization(subject, shuffled, RandomAttribution(), explained(subject, RandomAttribution()), seed=7)
    torch.testing.assert_close(same.values["randomization"], torch.ones(4, dtype=torch.float64))
    other = randomization(subject, shuffled, Gradient(), explained(subject, Gradient()), seed=7)
    assert (other.values["randomization"].abs() < 0.3).all()


def test_shuffling_moves_entries_within_each_tensor_and_nothing_else():
    classifier = cases.classifier(cases.cnn_bn_dropout())
    before = cases.state_of(classifier)
    shuffled, again, other = (shuffle_parameters(classifier, seed) for seed in (1, 1, 2))
    assert cases.state_of(classifier) == before
    for name, parameter in classifier.named_parameters():
        moved = dict(shuffled.named_parameters())[name]
        assert torch.equal(moved.flatten().sort().values, parameter.flatten().sort().values)
        assert torch.equal(moved, dict(again.named_parameters())[name])
    weight = "net.0.weight"
    assert not torch.equal(dict(shuffled.named_parameters())[weight], dict(classifier.named_parameters())[weight])
    assert not torch.equal(dict(shuffled.named_parameters())[weight], dict(other.named_parameters())[weight])
    for name, buffer in classifier.named_buffers():
        assert torch.equal(dict(shuffled.named_buffers())[name], buffer)


@pytest.mark.parametrize("n", [5, 40, 201])
def test_the_band_of_a_median_is_that_of_many_resamples(n):
    rng = np.random.default_rng(0)
    curves = rng.exponential(1.0, (n, 2))
    drawn = np.median(curves[rng.integers(n, size=(4000, n))], axis=1)
    center, *ends = mean_band(curves, median=True)
    assert np.array_equal(center, np.median(curves, axis=0))
    # Of an even number of curves the ends are approximate, and a quantile of 4,000 resamples is one.
    for end, at in zip(ends, (0.025, 0.975), strict=True):
        below, upto = (drawn < end - 1e-12).mean(0), (drawn <= end + 1e-12).mean(0)
        assert (below < at + 0.01).all(), (below, at)
        assert (upto > at - 0.01).all(), (upto, at)


def test_bands():
    source = torch.Generator().manual_seed(0)
    curves = torch.randn(400, 3, generator=source).double().numpy() + np.array([0.0, 5.0, 10.0])
    for median in (False, True):
        center, low, high = mean_band(curves, median=median)
        assert ((low < center) & (center < high)).all()
        wide = 2 * 1.96 / 20 * (1.2533 if median else 1)
        assert abs((high - low) / wide - 1).max() < 0.5
        many = mean_band(np.tile(curves, (6, 1)), median=median)  # more than are resampled
        assert np.allclose(many[0], center)
        assert abs((many[2] - many[1]) * 6**0.5 / (high - low) - 1).max() < 0.5
    with pytest.raises(ValueError, match=r"^curves: expected"):
        mean_band([[float("nan")]])
    with pytest.raises(ValueError, match=r"^curves: expected"):
        mean_band([1.0, 2.0])
