"""Insertion and deletion: RISE's recorded curves, closed forms, and orders of equal pixels."""

from __future__ import annotations

import cases
import metric_cases
import numpy as np
import pytest
import torch
from recorded import problem

from robustsigma import Classifier
from robustsigma.engine.metrics import InsertionDeletion, MetricContext, Skip
from robustsigma.engine.metrics.masked_scores import _window, baseline_images
from robustsigma.engine.metrics.ranking import pearson, ranks, spearman, tied_share

MAPS = ("ig", "idg", "gig", "sigma", "random")


@pytest.mark.parametrize("step", [8, 32])
@pytest.mark.parametrize("of", MAPS)
def test_rise_and_its_idg_copy_are_reproduced(vectors, of, step):
    stored, found = np.load(vectors / "metrics.npz"), problem(vectors, "f32")
    maps = torch.tensor(stored[f"map_{of}"])
    subject = MetricContext(found.classifier, found.images[: len(maps)], found.targets[: len(maps)])
    got = InsertionDeletion(step=step, tie_break="reference")(subject, maps)
    for ours, theirs in (("insertion", "ins"), ("deletion", "del")):
        for copy, tolerance in (("rise", 2e-5), ("idgrise", 2e-5)):
            key = f"{copy}_{theirs}_{step}_{of}"
            np.testing.assert_allclose(got.curves[ours].y.numpy(), stored[f"{key}_curve"], atol=tolerance)
            np.testing.assert_allclose(got.values[ours].numpy(), stored[f"{key}_auc"], atol=tolerance)


def test_the_blur_is_that_of_rise(vectors):
    stored, found = np.load(vectors / "metrics.npz"), problem(vectors, "f64")
    line = _window().numpy()
    np.testing.assert_allclose(np.outer(line, line), stored["gkern_11_5"], atol=1e-7)
    subject = MetricContext(found.classifier, found.images[:4])
    with found.classifier.frozen():
        np.testing.assert_allclose(baseline_images("blur", subject).numpy(), stored["blurred"], atol=1e-6)


def test_the_order_of_a_constant_map_is_numpys(vectors):
    stored = np.load(vectors / "metrics.npz")["rise_constant_map_order"]
    order = ranks(torch.ones(1, 32, 32), torch.zeros(1, dtype=torch.int64), "reference").argsort(1)[0]
    assert order.tolist() == stored.tolist()


@pytest.mark.parametrize("kind", ["sparse", "rounded"])
def test_equal_pixels_are_ordered_as_rises_code_does(kind):
    drawn = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = drawn.relu() * (drawn > 0.6) if kind == "sparse" else (10 * drawn).round() / 10
    order = ranks(maps, torch.zeros(3, dtype=torch.int64), "reference").argsort(1)
    assert np.array_equal(order.numpy(), np.flip(np.argsort(maps.numpy().reshape(-1, 32 * 32), axis=1), axis=-1))


def test_on_a_linear_network_the_curves_are_sums():
    net = cases.linear().double()
    x, rule = (
        cases.images(3, dtype=torch.float64),
        InsertionDeletion(insertion="black", deletion="black", step=1, score="logit", reduction="sum"),
    )
    subject = MetricContext(Classifier(net), x, 1)
    values = net[1].weight[1].detach().reshape(3, 8, 8) * x
    found = rule(subject, values)
    with torch.no_grad():
        empty = net(torch.zeros_like(x))[:, 1:2]
    ordered = values.sum(1).flatten(1).sort(1, descending=True).values
    shown = torch.cat([empty, empty + ordered.cumsum(1)], 1)
    torch.testing.assert_close(found.curves["insertion"].y, shown)
    torch.testing.assert_close(found.curves["deletion"].y, shown[:, -1:] - shown + empty)
    torch.testing.assert_close(found.values["difference"], found.values["insertion"] - found.values["deletion"])
    torch.testing.assert_close(found.values["insertion"], torch.trapezoid(shown, dx=1 / 64))


def test_normalized_curves_go_from_0_to_1_and_are_skipped_where_they_cannot():
    subject = metric_cases.subject(6)
    found = InsertionDeletion(normalized=True)(subject, subject.masks)
    for name, first, last in (("insertion", 0.0, 1.0), ("deletion", 1.0, 0.0)):
        curve = found.curves[name].y[found.skipped(name) == 0]
        assert len(curve)
        assert torch.allclose(curve[:, 0], torch.tensor(first, dtype=torch.float64))
        assert torch.allclose(curve[:, -1], torch.tensor(last, dtype=torch.float64))
    flat = MetricContext(cases.classifier(cases.constant()), cases.images(2))
    none = InsertionDeletion(normalized=True)(flat, torch.rand(2, 8, 8, generator=cases.generator(1)))
    for name, values in none.values.items():
        assert values.isnan().all()
        assert (none.skipped(name) == Skip.NO_GAIN).all()
    plain = InsertionDeletion()(flat, torch.rand(2, 8, 8, generator=cases.generator(1)))
    torch.testing.assert_close(plain.values["difference"], torch.zeros(2, dtype=torch.float64))


def test_passes_are_those_of_the_formula():
    counter = cases.PassCounter(metric_cases.Colors())
    images, labels, masks = metric_cases.scene(3)
    subject = MetricContext(Classifier(counter), images, labels)
    counter.reset()
    InsertionDeletion(step=10)(subject, masks.float())
    assert counter.forwards == 3 * 2 * (26 + 1)
    assert counter.backwards == 0


def test_a_step_that_does_not_divide_the_image_ends_with_the_whole_of_it():
    """The area is that under the curve as it is drawn, whose last piece is shorter than the others."""
    subject = metric_cases.subject(2)
    found = InsertionDeletion(step=100)(subject, subject.masks)
    for name in ("insertion", "deletion"):
        y = found.curves[name].y
        by_hand = (100 * (y[:, 0] + y[:, 1]) + 100 * (y[:, 1] + y[:, 2]) + 56 * (y[:, 2] + y[:, 3])) / 2 / 256
        torch.testing.assert_close(found.values[name], by_hand)
    assert found.curves["insertion"].x.tolist() == [0, 100 / 256, 200 / 256, 1]
    with subject.classifier.frozen():
        full = subject.classifier.score(subject.images, subject.target).double()
    torch.testing.assert_close(found.curves["insertion"].y[:, -1], full)
    torch.testing.assert_close(found.curves["deletion"].y[:, 0], full)


def test_ties_are_drawn_from_the_images_seed():
    maps, seeds = torch.zeros(2, 6, 6), torch.tensor([1, 2])
    drawn = ranks(maps, seeds)
    assert torch.equal(drawn.sort(1).values, torch.arange(36).expand(2, 36))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(ranks(maps[:1], seeds[:1]), drawn[:1])
    assert torch.equal(ranks(maps, seeds, "index"), torch.arange(36).expand(2, 36))
    maps[0, 3, 3], maps[1, 0, 0] = 1, -1
    drawn = ranks(maps, seeds)
    assert drawn[0, 21] == 0
    assert drawn[1, 0] == 35
    with pytest.raises(ValueError, match="tie_break"):
        ranks(maps, seeds, "best")


def test_tied_share_counts_all_of_a_group():
    maps = torch.tensor([[[1.0, 2, 3, 4]], [[1, 1, 1, 4]], [[0, 0, 0, 0]], [[1, 2, 1, 2]]])
    assert tied_share(maps).tolist() == [0, 0.75, 1, 1]


def test_correlations_are_scipys():
    from scipy.stats import pearsonr, spearmanr

    source = cases.generator(3)
    a, b = (torch.randint(0, 9, (4, 5, 6), generator=source).double() for _ in range(2))  # with ties
    for row in range(4):
        x, y = a[row].flatten().numpy(), b[row].flatten().numpy()
        assert spearman(a, b)[row].item() == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        assert pearson(a.flatten(1), b.flatten(1))[row].item() == pytest.approx(pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(torch.full((1, 3, 3), 0.1), a[:1, :3, :3]).isnan().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("insertion", "white"),
        ("deletion", "noise"),
        ("step", 0),
        ("step", 1.5),
        ("score", "p"),
        ("tie_break", "x"),
        ("reduction", "max"),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        InsertionDeletion(**{name: value})
