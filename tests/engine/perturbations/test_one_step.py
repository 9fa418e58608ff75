"""FGSM with a random start, N-FGSM, and the label whose loss is raised."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import nn

from robustsigma import FGSM, NFGSM
from robustsigma.engine import noise
from robustsigma.engine.perturbations.ball import Ball

EPS = 0.05


def drawn(seeds: torch.Tensor) -> torch.Tensor:
    """Return the uniform draw in (-1, 1) that every start is made of."""
    return 2 * noise.uniform(noise.fold(seeds, "start"), (3, 8, 8), torch.float64) - 1


def signs(clf, point: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the signs of a linear net's loss gradient in closed form: W^T (softmax - one_hot) / std."""
    with clf.frozen():
        residual = clf.logits(point).softmax(1) - nn.functional.one_hot(y, 3)
        return (residual @ clf.net[1].weight).sign().reshape(point.shape)


def problem(count: int = 6):
    clf = cases.classifier(cases.linear().double())
    return clf, cases.images(count, dtype=torch.float64), cases.labels(count), cases.seeds(count)


def test_fgsm_with_a_random_start_is_wongs_form():
    """Wong et al., 2020, algorithm 3: a uniform start, a step of 1.25 eps, clipped to the ball and to the image."""
    clf, x, y, seed = problem()
    point = (x + EPS * drawn(seed)).clamp(0, 1)
    wanted = (point + 1.25 * EPS * signs(clf, point, y)).clamp(x - EPS, x + EPS).clamp(0, 1)
    assert torch.allclose(FGSM(EPS, random_start=True)(clf, x, y, seed=seed), wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("k", [0.0, 1.0, 2.0])
def test_nfgsm_in_closed_form(k):
    """De Jorge et al., 2022: the noise stays in the result, which is not projected."""
    clf, x, y, seed = problem()
    noisy = (x + k * EPS * drawn(seed)).clamp(0, 1)
    wanted = (noisy + EPS * signs(clf, noisy, y)).clamp(0, 1)
    got = NFGSM(EPS, k=k)(clf, x, y, seed=seed)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-15)
    assert (got - x).abs().max() <= (1 + k) * EPS + 1e-12
    assert (got - x).abs().max() > max(1, k) * EPS - 1e-12
    if k == 0:
        assert torch.allclose(got, FGSM(EPS)(clf, x, y, seed=seed), rtol=0, atol=1e-15)


def test_predicted_labels_hide_the_true_one():
    clf, x, y, seed = problem(64)
    with clf.frozen():
        predicted = clf.logits(x).argmax(1)
    assert (predicted != y).any()
    hidden = FGSM(EPS, label="predicted")
    assert torch.equal(hidden(clf, x, y, seed=seed), FGSM(EPS)(clf, x, predicted, seed=seed))
    for attack in (hidden, FGSM(EPS, True, "predicted"), NFGSM(EPS, label="predicted")):
        assert torch.equal(attack(clf, x, y, seed=seed), attack(clf, x, (y + 1) % 3, seed=seed))
    assert not torch.equal(FGSM(EPS)(clf, x, y, seed=seed), FGSM(EPS)(clf, x, (y + 1) % 3, seed=seed))


@pytest.mark.parametrize("attack", [FGSM(EPS, True), NFGSM(EPS), FGSM(EPS, label="predicted")])
def test_one_step_attacks_cost_one_pass(attack):
    counter = cases.PassCounter(cases.mlp())
    clf, x, y = cases.classifier(counter), cases.images(6), cases.labels(6)
    attack(clf, x, y, seed=0)
    counter.reset()
    attack(clf, x, y, seed=0)
    assert (counter.forwards, counter.backwards) == (6, 6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_leaves_inner_points_and_moves_outer_ones_to_the_surface(norm):
    x = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    ball = Ball(x, 0.2, norm, (0.0, 1.0))
    direction = torch.randn(x.shape, generator=cases.generator(0), dtype=torch.float64)
    length = direction.abs().amax() if norm == "linf" else direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    inner, outer = x + 0.1 * direction / length, x + 0.9 * direction / length
    assert torch.equal(ball.project(inner), inner)
    moved = (ball.project(outer) - x).flatten(1)
    far = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert torch.allclose(far, torch.full((2,), 0.2, dtype=torch.float64), atol=1e-12)
