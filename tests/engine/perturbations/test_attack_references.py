"""APGD, FAB and FMN walk as the reference code and adv-lib do, step by step in double precision."""

from __future__ import annotations

import logging
import math
import sys
import types
import warnings
from contextlib import contextmanager

import cases
import pytest
import torch
from torch import nn

from robustsigma import APGD, FAB, FMN, Square
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import fmn
from robustsigma.engine.perturbations.ball import Ball
from robustsigma.engine.perturbations.in_parts import by_rank
from robustsigma.engine.perturbations.projections import lengths, onto_hyperplane, onto_l1_ball

pytestmark = pytest.mark.reference

EPS = {"linf": 0.03, "l2": 0.4, "l1": 3.0}
PEERS = {"linf": math.inf, "l2": 2, "l1": 1}
# A walk in the L2 norm converges to where rounding decides whether a loss is the higher one.
ROUNDING = {"linf": 1e-12, "l2": 1e-7}
SHOWN = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Recorder(nn.Module):
    """Keeps the images of every pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(72, 10),
        ).double()  # fmt: skip
        for parameter in self.parameters():
            parameter.data *= 3
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.net(x)


@contextmanager
def double():
    """Let the peers, which make tensors of the default type, compute in double precision."""
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_rng_state(state)


@pytest.fixture
def problem():
    with double():
        net = Recorder()
        x = cases.images(6, dtype=torch.float64)
        with torch.no_grad():
            y = net.net(x).argmax(1)
    clf = Classifier(net)
    with clf.frozen():
        clf.logits(x)  # the number of classes is known from here on
    return net, clf, x, y


@pytest.fixture
def adv_lib(monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", types.ModuleType("visdom"))
    sys.modules["visdom"].Visdom = object
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of distutils
        pytest.importorskip("adv_lib.attacks")


def near(a, b, tolerance, where):
    assert torch.allclose(a, b, rtol=0, atol=tolerance), f"{where}: {(a - b).abs().max():.3g}"


def ours(net, attack, clf, x, y):
    """Return the points of one image's passes, without that of the clean image."""
    net.seen = []
    attack(clf, x, y, seed=cases.seeds(1))
    return net.seen[1:]


def start_of(attack, x, part=0):
    keys = noise.fold(cases.seeds(1), f"apgd {attack.loss}", part)
    return Ball(x, attack.eps, attack.norm, (0.0, 1.0)).start_at_surface(keys)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_apgd_walks_as_the_reference(problem, norm, loss):
    peers = pytest.importorskip("pyautoattack.autopgd_base")
    net, clf, x, y = problem
    attack = APGD(EPS[norm] / 4, norm, loss, targets=1)
    whole = 0
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        points = ours(net, attack, clf, image, label)
        kind = peers.APGDAttack_targeted if loss == "dlr-targeted" else peers.APGDAttack
        with double():
            peer = kind(net, eps=attack.eps, norm=SHOWN[norm], device="cpu", logger=logging.getLogger("test"))
            peer.init_hyperparam(image)
            peer.loss, net.seen = loss, []
            peer.y_target = by_rank(net.net(image), label, 0)
            peer.attack_single_run(image, label, x_init=start_of(attack, image))
        assert len(net.seen) == 101
        whole += len(points) == 101
        for step, (a, b) in enumerate(zip(points, net.seen, strict=False)):
            near(a, b, ROUNDING[norm], f"image {i}, step {step}")
    assert whole >= 2  # of images that withstand the whole walk


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_walks_as_adv_lib(problem, adv_lib, monkeypatch, norm, loss):
    from adv_lib.attacks import auto_pgd

    def ratio(logits, labels, targeted=False):  # theirs adds 1e-8 to the divisor
        top = logits.topk(3, dim=1).values
        other = (logits - torch.zeros_like(logits).scatter_(1, labels[:, None], math.inf)).amax(1)
        return (logits.gather(1, labels[:, None])[:, 0] - other) / (top[:, 0] - top[:, 2] + 1e-12)

    monkeypatch.setattr(auto_pgd, "difference_of_logits_ratio", ratio)
    net, clf, x, y = problem
    attack = APGD(EPS[norm] / 4, norm, loss)
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        points = ours(net, attack, clf, image, label)
        with double():
            net.seen, eps = [], torch.tensor([attack.eps])
            auto_pgd._apgd(net, image, label, eps, PEERS[norm], start_of(attack, image), n_iter=100, loss_function=loss)
        for step, (a, b) in enumerate(zip(points, net.seen, strict=False)):
            near(a, b, ROUNDING[norm], f"image {i}, step {step}")


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_walks_as_adv_lib(problem, adv_lib, norm, targeted):
    from adv_lib.attacks.fast_adaptive_boundary import fast_adaptive_boundary

    net, clf, x, y = problem
    clf, x = Classifier(net.float()), x.float()  # theirs computes in single precision
    with clf.frozen():
        clf.logits(x)
    for i in range(len(x)):
        image, label = x[i : i + 1], y[i : i + 1]
        points = ours(net, FAB(None, norm, steps=20, targets=1, targeted=targeted), clf, image, label)
        target = by_rank(net.net(image), label, 0)
        net.seen, peer = [], {"norm": PEERS[norm], "n_iter": 20, "targets": target if targeted else None}
        fast_adaptive_boundary._fab(net, image, label, **peer)
        assert len(points) == len(net.seen) - 1 == 40
        for step, (a, b) in enumerate(zip(points, net.seen[1:], strict=True)):
            near(a, b, 2e-4, f"image {i}, step {step}")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fmn_walks_as_adv_lib(problem, adv_lib, monkeypatch, norm):
    from adv_lib.attacks import fast_minimum_norm

    def onto_l2(δ, ε):  # theirs also lengthens what is inside
        return δ.flatten(1).mul_((ε / δ.flatten(1).norm(dim=1).clamp_(min=1e-12)).clamp_(max=1)[:, None])

    def onto_l1(self, point):  # theirs projects onto the ball alone, then cuts at the bounds
        flat = (point - self.center).flatten(1)
        change = onto_l1_ball(flat, torch.full_like(flat, math.inf), self.eps.flatten())
        return (self.center + change.view_as(point)).clamp(*self.bounds)

    monkeypatch.setattr(fast_minimum_norm, "l2_projection_", onto_l2)
    monkeypatch.setattr(fmn, "_STUCK", 0.0)
    if norm == "l1":
        monkeypatch.setattr(Ball, "project", onto_l1)
    net, clf, x, y = problem
    net.seen = []
    found = FMN(norm, steps=60)(clf, x, y, seed=0, return_info=True)
    points = net.seen[:-1]  # without the last look
    with double():
        net.seen = []
        nearest = fast_minimum_norm.fmn(net, x, y, PEERS[norm], steps=60)
    assert len(points) == len(net.seen) == 60
    for step, (a, b) in enumerate(zip(points, net.seen, strict=True)):
        near(a, b, 1e-9, f"step {step}")
    assert torch.allclose(found.distance, lengths(nearest - x, norm), rtol=0, atol=1e-6)


def test_projections_are_the_reference_s():
    base, fab = pytest.importorskip("pyautoattack.autopgd_base"), pytest.importorskip("pyautoattack.fab_projections")
    x, source = cases.images(20).flatten(1), cases.generator(1)
    change = torch.randn(x.shape, generator=source)
    for eps in (0.5, 5.0, 60.0, 1000.0):
        room = torch.where(change > 0, 1 - x, x)
        got = onto_l1_ball(change, room, torch.full((20,), eps, dtype=torch.float64))
        torch.testing.assert_close(got, change + base.L1_projection(x, change, eps), rtol=0, atol=5e-5)
    weights = torch.randn(x.shape, generator=source)
    for gap in (0.0, 0.1, -3.0, 20.0, 1000.0):
        offset = (weights * x).sum(1) + gap
        for norm in ("linf", "l2", "l1"):
            peer = getattr(fab, f"projection_{norm}")
            torch.testing.assert_close(onto_hyperplane(x, weights, offset, norm), peer(x, weights, offset), **NEAR)


NEAR = {"rtol": 0, "atol": 5e-5}


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_peaks_of_square_are_the_reference_s(norm):
    square = pytest.importorskip("pyautoattack.square")
    peer = square.SquareAttack(None, norm=SHOWN[norm], device="cpu")
    for side in (1, 3, 4, 5, 6, 25):
        with double():
            torch.manual_seed(0)
            wanted = peer.eta(side)
        got = Square(norm=norm)._peak(side, wanted)
        assert torch.allclose(got, wanted) or torch.allclose(got.T, wanted), side
