"""LeRF and MoRF, MAS, DiffID and monotonicity: closed forms, shared passes, loops from their definitions."""

from __future__ import annotations

from itertools import pairwise

import cases
import metric_cases
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from robustsigma import Classifier
from robustsigma.engine.metrics import (
    DiffID,
    InsertionDeletion,
    LerfMorf,
    MagnitudeAlignedScore,
    MetricContext,
    Monotonicity,
    Skip,
)
from robustsigma.engine.metrics.published import CumulativeMonotonicity


def linear_scene(count: int = 3) -> tuple[MetricContext, torch.Tensor, torch.Tensor]:
    """Return a linear network's context, its exact contributions (B, 8, 8), and the logit of a black image."""
    net = cases.linear().double()
    images = cases.images(count, dtype=torch.float64)
    subject = MetricContext(Classifier(net), images, 1)
    with torch.no_grad():
        empty = net(torch.zeros_like(images))[:, 1:2]
    return subject, (net[1].weight[1].detach().reshape(3, 8, 8) * images).sum(1), empty


def random_map(count: int, side: int) -> torch.Tensor:
    return torch.rand(count, side, side, generator=cases.generator(7), dtype=torch.float64)


def test_lerf_and_morf_of_a_linear_network_are_sums():
    subject, parts, empty = linear_scene()
    found = LerfMorf(baseline="black", step=1, score="logit")(subject, parts)
    for name, ordered in (("lerf", parts.flatten(1).sort(1)), ("morf", parts.flatten(1).sort(1, descending=True))):
        left = torch.cat([torch.zeros_like(empty), ordered.values.cumsum(1)], 1)
        curve = empty + parts.flatten(1).sum(1, keepdim=True) - left
        torch.testing.assert_close(found.curves[name].y, curve)
        torch.testing.assert_close(found.values[name], torch.trapezoid(curve, dx=1 / 64))
    torch.testing.assert_close(found.values["relevance_gain"], found.values["lerf"] - found.values["morf"])


def test_lerf_is_the_insertion_curve_backwards():
    subject = metric_cases.subject(4, dtype=torch.float64)
    heat = random_map(4, metric_cases.SIDE)
    lerf = LerfMorf(baseline="mean")(subject, heat).values["lerf"]
    torch.testing.assert_close(lerf, InsertionDeletion(insertion="mean")(subject, heat).values["insertion"])


def test_metrics_of_the_same_curve_share_its_passes():
    counter = cases.PassCounter(metric_cases.Colors())
    images, labels, _ = metric_cases.scene(3)
    subject, heat = MetricContext(Classifier(counter), images, labels), random_map(3, metric_cases.SIDE)
    counter.reset()
    InsertionDeletion()(subject, heat)
    assert counter.forwards == 2 * 3 * 17
    for metric in (MagnitudeAlignedScore(), CumulativeMonotonicity(), InsertionDeletion(normalized=True)):
        metric(subject, heat)
    assert counter.forwards == 2 * 3 * 17
    LerfMorf()(subject, heat)
    assert counter.forwards == 3 * 3 * 17, "MoRF is the deletion curve"
    LerfMorf()(subject, heat + heat.flip(1))
    assert counter.forwards == 5 * 3 * 17, "another order has other curves"


def mas_by_hand(curve: np.ndarray, heat: np.ndarray, step: int, *, insertion: bool) -> float:
    """Return the area as the paper defines it, in one loop over the steps of one image."""
    flat = heat.ravel()
    order = np.argsort(-flat, kind="stable")
    empty, full = (curve[0], curve[-1]) if insertion else (curve[-1], curve[0])
    best, aligned = (0.0 if insertion else 1.0), []
    for place, score in enumerate(curve):
        response = min(max((score - empty) / (full - empty), 0.0), 1.0)
        best = max(best, response) if insertion else min(best, response)
        inside = flat[order[: place * step]].sum() / flat.sum()
        density = inside if insertion else 1 - inside
        penalty = abs(best - density)
        aligned.append(min(max(best - penalty if insertion else best + penalty, 0.0), 1.0))
    return float(sum((a + b) / 2 for a, b in pairwise(aligned)) / (len(aligned) - 1))


def test_mas_is_its_definition():
    subject = metric_cases.subject(12, dtype=torch.float64)
    heat = random_map(12, metric_cases.SIDE) + subject.masks
    found = MagnitudeAlignedScore()(subject, heat)
    plain = InsertionDeletion()(subject, heat)
    evaluated = 0
    for name in ("insertion", "deletion"):
        for row in range(12):
            if found.skipped(f"mas_{name}")[row] == 0:
                curve = plain.curves[name].y[row].numpy()
                expected = mas_by_hand(curve, heat[row].numpy(), metric_cases.SIDE, insertion=name == "insertion")
                assert found.values[f"mas_{name}"][row].item() == pytest.approx(expected, abs=1e-9)
                evaluated += 1
    assert evaluated > 12


def test_mas_of_a_map_that_is_the_response_is_that_of_rise():
    """On a linear network with positive parts, the exact contributions have no penalty."""
    net = cases.linear().double()
    net[1].weight.data[1] = net[1].weight.data[1].abs()
    net[1].weight.data[[0, 2]] = 0
    net[1].bias.data[:] = torch.tensor([0.0, -40.0, 0.0])
    net[1].weight.data *= 1e-4  # so small that the softmax is linear
    subject = MetricContext(Classifier(net), cases.images(2, dtype=torch.float64), 1)
    parts = (net[1].weight[1].detach().reshape(3, 8, 8) * subject.images).sum(1)
    found = MagnitudeAlignedScore("black", "black", step=1)(subject, parts)
    ordered = parts.flatten(1).sort(1, descending=True).values.cumsum(1) / parts.flatten(1).sum(1, keepdim=True)
    area = torch.trapezoid(torch.cat([torch.zeros(2, 1), ordered], 1), dx=1 / 64)
    torch.testing.assert_close(found.values["mas_insertion"], area, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.values["mas_deletion"], 1 - area, atol=1e-3, rtol=0)
    worse = MagnitudeAlignedScore("black", "black", step=1)(subject, parts**8)  # the same order, other magnitudes
    assert (worse.values["mas_insertion"] < found.values["mas_insertion"] - 0.05).all()


def test_mas_is_skipped_where_it_has_no_meaning():
    flat = MetricContext(cases.classifier(cases.constant()), cases.images(2))
    found = MagnitudeAlignedScore()(flat, random_map(2, 8))
    assert all((found.skipped(name) == Skip.NO_GAIN).all() for name in found.values)
    subject = metric_cases.subject(2)
    for value in (0.0, 3.0):
        found = MagnitudeAlignedScore()(subject, torch.full((2, metric_cases.SIDE, metric_cases.SIDE), value))
        assert all((found.skipped(name) == Skip.NO_VARIANCE).all() for name in found.values)


def diffid_by_hand(subject: MetricContext, row: int, features: np.ndarray, ratio: float, *, most: bool) -> np.ndarray:
    """Return the normalized image in which a share of its values became the mean of the others, value by value."""
    mean, std = (part.numpy().reshape(-1) for part in (subject.classifier.mean, subject.classifier.std))
    image = subject.images[row].numpy()
    normalized = np.stack([(image[c] - mean[c]) / std[c] for c in range(len(image))]).ravel()
    order = np.argsort(-features.ravel() if most else features.ravel(), kind="stable")
    gone = order[: int(len(order) * ratio)]
    kept = [normalized[place] for place in range(len(normalized)) if place not in set(gone.tolist())]
    normalized[gone] = sum(kept) / len(kept)
    return normalized.reshape(image.shape)


@pytest.mark.parametrize("retention", ["accuracy", "confidence"])
def test_diffid_is_its_definition(retention):
    net = cases.mlp().double()
    classifier = Classifier(net, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    subject = MetricContext(classifier, cases.images(4, dtype=torch.float64))
    values = torch.randn(4, 3, 8, 8, generator=cases.generator(3), dtype=torch.float64)
    ratios = (0.25, 0.5, 0.8)
    found = DiffID(ratios, retention, tie_break="index", features="values")(subject, values)
    for name, most in (("diffid_insertion", False), ("diffid_deletion", True)):
        expected = np.zeros((4, 3))
        for row in range(4):
            target = int(subject.target[row])
            full = subject.logits[row].softmax(0)[target].item()
            for place, ratio in enumerate(ratios):
                pixels = diffid_by_hand(subject, row, values[row].abs().numpy(), ratio, most=most)
                with torch.no_grad():
                    logits = net(torch.tensor(pixels)[None])[0]
                kept = float(logits.argmax() == target)
                expected[row, place] = kept if retention == "accuracy" else min(logits.softmax(0)[target] / full, 1)
        np.testing.assert_allclose(found.curves[name].y.numpy(), expected, atol=1e-7)
        np.testing.assert_allclose(found.values[name].numpy(), expected.mean(1), atol=1e-7)


def test_monotonicity_is_one_where_attributions_are_effects():
    subject, parts, _ = linear_scene()
    rule = Monotonicity(groups=64, baseline="black")
    torch.testing.assert_close(rule(subject, parts.abs()).values["monotonicity"], torch.ones(3, dtype=torch.float64))
    opposite = rule(subject, -parts.abs()).values["monotonicity"]
    torch.testing.assert_close(opposite, -torch.ones(3, dtype=torch.float64))
    assert (rule(subject, torch.ones(3, 8, 8)).skipped("monotonicity") == Skip.NO_VARIANCE).all()


def test_monotonicity_of_random_maps_is_zero_on_average():
    subject = metric_cases.subject(60)
    values = Monotonicity()(subject, random_map(60, metric_cases.SIDE)).values["monotonicity"]
    assert abs(values.mean().item()) < 3 * values.std().item() / 60**0.5


def test_cumulative_monotonicity_is_spearmans_and_rewards_random_maps():
    subject = metric_cases.subject(20, dtype=torch.float64)
    heat = random_map(20, metric_cases.SIDE)
    found, plain = CumulativeMonotonicity()(subject, heat), InsertionDeletion()(subject, heat)
    for name, sign in (("insertion", 1), ("deletion", -1)):
        curve = plain.curves[name]
        expected = [sign * spearmanr(curve.x.numpy(), y.numpy()).statistic for y in curve.y]
        np.testing.assert_allclose(found.values[f"monotonicity_{name}"].numpy(), expected, atol=1e-9)
    perfect = CumulativeMonotonicity()(subject, subject.masks)
    assert found.values["monotonicity_insertion"].mean() > perfect.values["monotonicity_insertion"].mean()


@pytest.mark.parametrize(
    ("metric", "name", "value"),
    [
        (LerfMorf, "baseline", "gray"),
        (LerfMorf, "step", 0),
        (LerfMorf, "score", "loss"),
        (MagnitudeAlignedScore, "insertion", "gray"),
        (MagnitudeAlignedScore, "tie_break", "x"),
        (DiffID, "ratios", ()),
        (DiffID, "ratios", (0.5, 0.2)),
        (DiffID, "ratios", (0.5, 1.0)),
        (DiffID, "retention", "loss"),
        (DiffID, "features", "patches"),
        (DiffID, "reduction", "max"),
        (Monotonicity, "groups", 2),
        (Monotonicity, "baseline", "gray"),
    ],
)
def test_bad_arguments(metric, name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        metric(**{name: value})
