"""PGD in both norms, with restarts and with targets."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import cases
import pytest
import torch
from torch import nn

from robustsigma import PGD
from robustsigma.engine import noise
from robustsigma.engine.perturbations.ball import Ball, unit

RESTARTED = PGD(0.02, steps=2, restarts=4)


def losses(clf, images, y):
    """Return which images are wrong, and the loss of their label."""
    with clf.frozen():
        logits = clf.logits(images)
    return logits.argmax(1) != y, nn.functional.cross_entropy(logits, y, reduction="none")


def predicted(clf, x):
    with clf.frozen():
        return clf.logits(x).argmax(1)


def length(moved):
    return moved.flatten(1).norm(dim=1)


# L2


@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("random_start", [True, False])
def test_l2_stays_in_the_ball_and_in_bounds(eps, random_start):
    clf, x, y = cases.classifier(), cases.images(64), cases.labels(64)
    moved = PGD(eps, norm="l2", random_start=random_start)(clf, x, y, seed=cases.seeds(64))
    assert length(moved - x).max() <= eps * (1 + 1e-6) + 1e-7
    assert moved.min() >= 0
    assert moved.max() <= 1
    if eps:
        assert length(moved - x).min() > 0.9 * eps or eps == 2.0
        assert losses(clf, moved, y)[1].mean() > losses(clf, x, y)[1].mean() + 0.1


def test_l2_step_on_a_linear_net_in_closed_form():
    clf, x, y = cases.classifier(cases.linear().double()), cases.images(dtype=torch.float64), cases.labels()
    with clf.frozen():
        residual = clf.logits(x).softmax(1) - nn.functional.one_hot(y, 3)
        gradient = (residual @ clf.net[1].weight).reshape(x.shape) / clf.std
    wanted = (x + 0.2 * gradient / length(gradient).reshape(-1, 1, 1, 1)).clamp(0, 1)
    got = PGD(0.5, step_size=0.2, steps=1, random_start=False, norm="l2")(clf, x, y, seed=0)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-14)


def test_zero_and_tiny_gradients_are_safe():
    tiny = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [3e30, 4e30]]).reshape(3, 1, 1, 2)
    assert torch.allclose(unit(tiny).flatten(1), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]]))
    assert unit(torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0]]).reshape(2, 1, 1, 2)).isnan().flatten(1).any(1).all()
    x = cases.images()
    still = PGD(0.5, norm="l2", random_start=False)
    assert torch.equal(still(cases.classifier(cases.constant()), x, cases.labels(), seed=0), x)


def test_l2_start_is_uniform_in_the_ball():
    """The share of points within radius r of the center is r^d."""
    x, seed = torch.full((4000, 1, 1, 2), 0.5), cases.seeds(4000)
    moved = (Ball(x, 0.1, "l2", (0.0, 1.0)).start(seed) - x).flatten(1) / 0.1
    ranked = moved.double().norm(dim=1).square().sort().values
    steps = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert (ranked - steps).abs().max() < 1.8 / 4000**0.5
    assert moved.mean(0).abs().max() < 5 * 0.5 / 4000**0.5


# Restarts


@pytest.mark.parametrize("settings", [{}, {"norm": "l2", "eps": 0.3}, {"targeted": "random"}])
def test_restarts_keep_the_worst_result(settings):
    """As if every restart were run on every image: a wrong image first, then the highest loss."""
    clf, count = cases.classifier(cases.cnn_bn_dropout()), 128
    x, seed = cases.images(count), cases.seeds(count)
    y = predicted(clf, x)
    attack = dataclasses.replace(RESTARTED, **settings)
    single = dataclasses.replace(attack, restarts=1)
    runs = [single(clf, x, y, seed=seed)]
    runs += [single(clf, x, y, seed=noise.fold(seed, "restart", r)) for r in range(1, attack.restarts)]
    wrong, loss = zip(*(losses(clf, run, y) for run in runs), strict=True)
    wrong, loss = torch.stack(wrong), torch.stack(loss)
    first = torch.where(wrong.any(0), wrong.int().argmax(0), loss.argmax(0))  # the first that is wrong ends the search
    wanted = torch.stack(runs)[first, torch.arange(count)]
    got = attack(clf, x, y, seed=seed)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-6)
    assert len(first.unique()) == attack.restarts
    assert 0 < wrong.any(0).sum() < count


def test_more_restarts_are_never_weaker():
    clf, x = cases.classifier(cases.cnn_bn_dropout()), cases.images(256)
    y, seed = predicted(clf, x), cases.seeds(256)
    results = [losses(clf, PGD(0.05, steps=2, restarts=r)(clf, x, y, seed=seed), y) for r in (1, 2, 8)]
    for (wrong, loss), (more_wrong, more_loss) in pairwise(results):
        assert (more_wrong | ~wrong).all()
        kept = ~more_wrong
        assert (more_loss[kept] >= loss[kept] - 1e-6).all()
    assert results[2][0].sum() > results[0][0].sum()


def test_broken_images_are_not_attacked_again():
    counter = cases.PassCounter(cases.cnn_bn_dropout())
    clf, x, seed = cases.classifier(counter), cases.images(64), cases.seeds(64)
    y = predicted(clf, x)
    single = losses(clf, dataclasses.replace(RESTARTED, restarts=1)(clf, x, y, seed=seed), y)[0]
    left = int((~single).sum())
    assert 0 < left < 64
    counter.reset()
    dataclasses.replace(RESTARTED, restarts=2)(clf, x, y, seed=seed)
    assert (counter.forwards, counter.backwards) == (3 * 64 + 3 * left, 2 * 64 + 2 * left)
    counter.reset()
    dataclasses.replace(RESTARTED, restarts=9)(clf, x, (y + 1) % 3, seed=seed)  # all wrong from the start
    assert counter.backwards == 2 * 64


def test_nan_scores_at_the_end_of_a_restart_are_an_error():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cases.mlp()

        def forward(self, x):
            return self.net(x) * (1.0 if x.requires_grad else torch.nan)

    clf = cases.classifier(Broken())
    with pytest.raises(ValueError, match=r"^net: expected finite gradients or scores, got NaN or infinity, in PGD$"):
        RESTARTED(clf, cases.images(), cases.labels(), seed=0)


# Targets


def test_targets():
    clf, x, y = cases.classifier(cases.linear(classes=6)), cases.images(64), cases.labels(64, classes=6)
    with clf.frozen():
        logits = clf.logits(x)
    for targeted in ("second", "least_likely"):
        got = PGD(targeted=targeted)._targets(logits, y, cases.seeds(64))
        for i in range(64):
            others = [k for k in range(6) if k != int(y[i])]
            choose = max if targeted == "second" else min
            assert int(got[i]) == choose(others, key=lambda k, row=i: float(logits[row, k]))
    count = 6000
    some = torch.arange(count) % 6
    drawn = PGD(targeted="random")._targets(torch.zeros(count, 6), some, cases.seeds(count))
    assert (drawn != some).all()
    for label in range(6):
        shares = drawn[some == label].bincount(minlength=6) / (count / 6)
        shares = shares[torch.arange(6) != label]
        assert (shares - 0.2).abs().max() < 5 * (0.2 * 0.8 / (count / 6)) ** 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_attacks_reach_their_target(norm):
    clf, x = cases.classifier(cases.linear()), cases.images(32)
    y = predicted(clf, x)
    attack = PGD(0.3 if norm == "linf" else 3.0, steps=20, norm=norm, random_start=False, targeted="least_likely")
    with clf.frozen():
        target = attack._targets(clf.logits(x), y, cases.seeds(32))
    assert (predicted(clf, attack(clf, x, y, seed=0)) == target).float().mean() > 0.9


def test_a_target_costs_one_forward_more():
    counter = cases.PassCounter(cases.mlp())
    clf, x, y = cases.classifier(counter), cases.images(6), cases.labels(6)
    predicted(clf, x)
    counter.reset()
    PGD(steps=3, targeted="second")(clf, x, y, seed=0)
    assert (counter.forwards, counter.backwards) == (6 * 4, 6 * 3)


def test_two_classes_have_one_target():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for targeted in ("random", "second", "least_likely"):
        assert PGD(targeted=targeted)._targets(logits, torch.tensor([0, 1]), cases.seeds(2)).tolist() == [1, 0]
