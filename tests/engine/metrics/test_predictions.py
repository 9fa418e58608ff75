"""Sensitivity-N and infidelity: attributions as predictions of what removal costs."""

from __future__ import annotations

import cases
import metric_cases
import numpy as np
import pytest
import torch

from robustsigma import Classifier
from robustsigma.engine.metrics import Infidelity, MetricContext, SensitivityN, Skip
from robustsigma.engine.metrics.infidelity import infidelity

GENERATOR = 4


def linear_case(count: int = 3):
    """Return a subject on a linear network, and the exact effects of removing pixels to black, (count, 3, 8, 8)."""
    net, x = cases.linear().double(), cases.images(count, dtype=torch.float64)
    return MetricContext(Classifier(net), x, 1, seed=cases.seeds(count)), net[1].weight[1].detach().reshape(3, 8, 8) * x


def test_exact_attributions_predict_exactly():
    subject, values = linear_case()
    found = SensitivityN(baseline="black", subsets=20)(subject, values)
    torch.testing.assert_close(found.values["sensitivity_n"], torch.ones(3, dtype=torch.float64))
    opposite = SensitivityN(baseline="black", subsets=20)(subject, -3 * values)
    torch.testing.assert_close(opposite.values["sensitivity_n"], -torch.ones(3, dtype=torch.float64))
    for scaled, normalize in ((values, False), (values, True), (7 * values, True)):
        error = Infidelity(baseline="black", normalize=normalize, samples=20)(subject, scaled)
        torch.testing.assert_close(error.values["infidelity"], torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    wrong = Infidelity(baseline="black", normalize=False, samples=20)(subject, 7 * values)
    assert (wrong.values["infidelity"] > 1e-3).all()


def test_sensitivity_n_is_the_definition():
    """Against loops over sets, with numpy's correlation; the sets come from the network that sees the images."""
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp().double()

        def forward(self, x):
            seen.append(x)
            return self.net(x)

    spy = Spy()
    classifier, x = Classifier(spy), cases.images(2, dtype=torch.float64)
    subject = MetricContext(classifier, x, 0, seed=cases.seeds(2))
    seen.clear()
    maps = torch.randn(2, 8, 8, generator=cases.generator(GENERATOR), dtype=torch.float64)
    metric = SensitivityN(fractions=(0.1, 0.5), subsets=7, baseline="black")
    found = metric(subject, maps)
    copies = torch.cat(seen).reshape(2, 7, 2, 3, 8, 8)
    with torch.no_grad():
        scores = spy.net(copies.reshape(-1, 3, 8, 8))[:, 0].reshape(2, 7, 2)
        full = spy.net(x)[:, 0]
    for row in range(2):
        for share, size in enumerate((6, 32)):
            sums, costs = [], []
            for subset in range(7):
                removed = (copies[row, subset, share] == 0).all(0)
                assert removed.sum() == size
                sums.append(float(maps[row][removed].sum()))
                costs.append(float(full[row] - scores[row, subset, share]))
            expected = np.corrcoef(sums, costs)[0, 1]
            assert found.curves["sensitivity_n"].y[row, share].item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(found.values["sensitivity_n"], found.curves["sensitivity_n"].y.mean(1))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SensitivityN, [{}, {"score": "prob"}, {"baseline": "blur"}, {"fractions": (0.2,)}, {"subsets": 8}]),
        (Infidelity, [{}, {"score": "prob"}, {"baseline": "blur"}, {"sides": (0.3, 0.4)}, {"samples": 8}]),
    ],
)
def test_metrics_of_other_settings_share_nothing_of_a_subject(kind, settings):
    few = {"subsets": 9, "fractions": (0.1, 0.5)} if kind is SensitivityN else {"samples": 9}
    maps = torch.rand(4, 16, 16, generator=cases.generator(GENERATOR), dtype=torch.float64)
    subject = metric_cases.subject()
    for changed in settings:
        metric = kind(**few | changed)
        for name, alone in metric(metric_cases.subject(), maps).values.items():
            torch.testing.assert_close(metric(subject, maps).values[name], alone, equal_nan=True)


def test_what_does_not_vary_has_no_correlation():
    subject = metric_cases.subject(2)
    constant = SensitivityN(subsets=5)(subject, torch.full((2, 16, 16), 0.1))
    flat = MetricContext(cases.classifier(cases.constant()), cases.images(2))
    for found in (constant, SensitivityN(subsets=5)(flat, torch.rand(2, 8, 8, generator=cases.generator(0)))):
        assert found.values["sensitivity_n"].isnan().all()
        assert (found.skipped("sensitivity_n") == Skip.NO_VARIANCE).all()


def test_a_constant_map_predicts_no_more_than_zeros():
    subject = metric_cases.subject(3)
    constant, zero = (Infidelity(samples=9)(subject, torch.full((3, 16, 16), value)) for value in (2.0, 0.0))
    torch.testing.assert_close(constant.values["infidelity"], zero.values["infidelity"])


def test_the_best_scale_is_the_best():
    source = cases.generator(GENERATOR)
    predicted, costs = (torch.randn(2, 30, generator=source, dtype=torch.float64) for _ in range(2))
    best = infidelity(predicted, costs, normalize=True)
    for scale in torch.linspace(-2, 2, 41).tolist():
        assert (infidelity(scale * predicted, costs, normalize=False) >= best - 1e-12).all()


@pytest.mark.reference
@pytest.mark.parametrize("normalize", [True, False])
def test_captum(normalize):
    captum = pytest.importorskip("captum.metrics")
    classifier, images = cases.classifier(cases.mlp().double(), chunk_size=64), cases.images(3, dtype=torch.float64)
    values = torch.randn(3, 3, 8, 8, generator=cases.generator(GENERATOR), dtype=torch.float64)
    metric = Infidelity(samples=11, normalize=normalize)
    subject = MetricContext(classifier, images, 2, seed=cases.seeds(3))
    squares = metric._squares(subject)
    mean = classifier.mean.double().expand(3, 8, 8)
    taken = iter(range(11))

    def perturb(inputs):
        sample = next(taken)  # captum repeats the batch for each of its own chunks, here one sample at a time
        inside = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
        for row, (top, left, bottom, right) in enumerate(squares[:, sample].tolist()):
            inside[row, :, top:bottom, left:right] = 1
        return inside.expand(3, 3, 8, 8), torch.where(inside > 0, mean, inputs)

    with classifier.frozen():
        expected = captum.infidelity(
            lambda x: classifier(x),
            perturb,
            images,
            values,
            target=2,
            n_perturb_samples=11,
            max_examples_per_batch=3,
            normalize=normalize,
        )
    torch.testing.assert_close(metric(subject, values).values["infidelity"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("metric", "name", "value"),
    [
        (SensitivityN, "fractions", ()),
        (SensitivityN, "fractions", (0.0, 0.5)),
        (SensitivityN, "fractions", (1.0,)),
        (SensitivityN, "subsets", 1),
        (SensitivityN, "baseline", "gray"),
        (SensitivityN, "score", "loss"),
        (Infidelity, "samples", 0),
        (Infidelity, "sides", (0.5, 0.1)),
        (Infidelity, "sides", (0.5,)),
        (Infidelity, "baseline", "gray"),
    ],
)
def test_bad_arguments(metric, name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        metric(**{name: value})
