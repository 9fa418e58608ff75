"""Sparseness, relevance accuracy and max-sensitivity: closed forms, and loops written from Quantus' definitions."""

from __future__ import annotations

import cases
import metric_cases
import numpy as np
import pytest
import torch

from robustsigma import Gradient, IntegratedGradients, RandomAttribution
from robustsigma.engine import noise
from robustsigma.engine.metrics import MetricContext, RelevanceAccuracy, Skip, Sparseness, max_sensitivity


def subject(masks: torch.Tensor | None = None, count: int = 1) -> MetricContext:
    return MetricContext(cases.classifier(), cases.images(count), masks=masks)


def drawn(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 8, 8, generator=cases.generator(4), dtype=torch.float64)


def test_sparseness_of_known_maps():
    one = torch.zeros(1, 8, 8)
    one[0, 3, 4] = -2
    assert Sparseness()(subject(), one).values["sparseness"].item() == pytest.approx(1 - 1 / 64)
    for value in (0.0, 5.0):
        assert Sparseness()(subject(), torch.full((1, 8, 8), value)).values["sparseness"].item() == 0
    ramp = torch.arange(1, 65, dtype=torch.float64).reshape(1, 8, 8)
    assert Sparseness()(subject(), ramp).values["sparseness"].item() == pytest.approx(63 / (3 * 64))


def test_sparseness_is_the_mean_difference_of_pairs():
    maps = drawn()
    found = Sparseness()(subject(count=5), maps).values["sparseness"].numpy()
    for row, values in enumerate(maps.abs().flatten(1).numpy()):
        pairs = sum(abs(a - b) for a in values for b in values)
        assert found[row] == pytest.approx(pairs / (2 * len(values) * values.sum()))


def test_relevance_accuracy_worked_out_by_hand():
    mask, heat = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    mask[0, 0, :3] = 1
    heat[0, 0, :5] = torch.tensor([4.0, 2, 0.5, 3, 0.5])
    found = RelevanceAccuracy()(subject(mask), heat).values
    assert found["relevance_mass"].item() == pytest.approx(6.5 / 10)
    assert found["relevance_rank"].item() == pytest.approx(2 / 3)
    heat[0, 1, 0] = -100
    assert RelevanceAccuracy()(subject(mask), heat).values["relevance_mass"].item() == pytest.approx(6.5 / 10)
    for value in (0.0, 5.0, -1.0):
        flat = RelevanceAccuracy()(subject(mask), torch.full((1, 8, 8), value))
        assert all(each.item() == 0 for each in flat.values.values())
    empty = RelevanceAccuracy()(subject(torch.zeros(1, 8, 8)), heat)
    assert all((empty.skipped(name) == Skip.EMPTY_MASK).all() for name in empty.values)


def test_relevance_accuracy_is_quantus():
    masks = (drawn() > 0.4).double()
    maps = drawn().flip(0).abs()
    found = RelevanceAccuracy()(subject(masks, 5), maps).values
    for row in range(5):
        a, s = maps[row].numpy().ravel() / maps[row].max().item(), masks[row].numpy().ravel() > 0
        inside = set(np.flatnonzero(s).tolist())
        top = sorted(range(64), key=lambda place: -a[place])[: len(inside)]
        assert found["relevance_mass"][row].item() == pytest.approx(sum(a[p] for p in inside) / a.sum())
        assert found["relevance_rank"][row].item() == pytest.approx(len(inside & set(top)) / len(inside))


def test_random_maps_have_the_objects_share():
    scene = metric_cases.subject(200)
    maps = torch.rand(200, metric_cases.SIDE, metric_cases.SIDE, generator=cases.generator(2))
    for name, values in RelevanceAccuracy()(scene, maps).values.items():
        assert values.mean().item() == pytest.approx(25 / 256, abs=0.01), name


def sensitivity(context: MetricContext, method, **kwargs) -> torch.Tensor:
    result = method(context.classifier, context.images, context.target, seed=3)
    return max_sensitivity(context, method, result, seed=3, **kwargs).values["max_sensitivity"]


def test_max_sensitivity():
    linear = MetricContext(cases.classifier(cases.linear()), cases.images(3))
    assert sensitivity(linear, Gradient()).tolist() == [0, 0, 0], "its gradient is the same everywhere"
    curved = MetricContext(cases.classifier(cases.mlp()), cases.images(3))
    assert (sensitivity(curved, Gradient()) > 0).all()
    assert sensitivity(curved, RandomAttribution()).tolist() == [0, 0, 0], "it does not look at the image"
    few, many = (sensitivity(curved, Gradient(), samples=samples) for samples in (1, 5))
    assert (many >= few).all()
    for name, value in (("samples", 0), ("radius", 0.0)):
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            sensitivity(curved, Gradient(), **{name: value})


@pytest.mark.reference
@pytest.mark.parametrize("method", [Gradient(), IntegratedGradients(steps=5)])
def test_max_sensitivity_is_captums(method):
    captum = pytest.importorskip("captum.metrics")
    classifier = cases.classifier(cases.mlp().double(), chunk_size=64)
    context = MetricContext(classifier, cases.images(3, dtype=torch.float64), seed=cases.seeds(3))
    taken = iter(range(10))

    def perturb(inputs):
        keys = noise.fold(context.seeds, "max_sensitivity", next(taken))
        drawn = noise.uniform(keys, inputs.shape[1:], torch.float64)
        return inputs + 0.02 * (2 * drawn - 1)

    def explain(inputs):
        if isinstance(inputs, tuple):  # captum then takes a tuple
            return (explain(inputs[0]),)
        return method(classifier, inputs, context.target).values

    expected = captum.sensitivity_max(
        explain,
        context.images,
        perturb,
        n_perturb_samples=10,
        max_examples_per_batch=3,
    )
    torch.testing.assert_close(sensitivity(context, method), expected, rtol=1e-9, atol=1e-12)
