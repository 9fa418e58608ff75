"""What calls of attacks take and tell: radii and targets for each image, passes, distances, several radii at once."""

from __future__ import annotations

from itertools import permutations
from typing import get_args

import cases
import pytest
import torch
from test_every_perturbation import every

from robustsigma import (
    APGD,
    FAB,
    FGSM,
    FMN,
    NFGSM,
    PGD,
    AttributionMasked,
    AutoAttack,
    GaussianNoise,
    Mixture,
    Square,
    TorchAttack,
    attack_at_radii,
)
from robustsigma.engine.perturbations.losses import Loss, attack_loss
from robustsigma.engine.perturbations.projections import lengths, onto_hyperplane, onto_l1_ball

ATTACKS = [
    *(FGSM(), NFGSM(k=0.5), PGD(steps=2), PGD(steps=2, norm="l2", restarts=2), PGD(steps=2, objective="kl")),
    *(APGD(steps=3, norm=norm) for norm in ("linf", "l2", "l1")),
    *(FAB(0.1, norm, steps=2, targets=1) for norm in ("linf", "l2", "l1")),
    *(Square(0.1, 4, norm) for norm in ("linf", "l2", "l1")),
    AutoAttack(steps=2, queries=3),
]


def problem(count=6, net=None):
    net = cases.mlp() if net is None else net
    clf, x = cases.classifier(net.double()), cases.images(count, dtype=torch.float64)
    return clf, x, predicted(clf, x)


def predicted(clf, x):
    with clf.frozen():
        return clf.logits(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("wrapper", [AttributionMasked, TorchAttack], ids=lambda wrapper: wrapper.__name__)
def test_the_distance_of_a_wrapped_attack_is_in_its_norm(wrapper, norm):
    if wrapper is TorchAttack:
        pytest.importorskip("torchattacks")
        attack = TorchAttack("PGD" if norm == "linf" else "PGDL2", eps=0.1)
    else:
        attack = AttributionMasked(PGD(0.1, norm=norm))
    clf, x, y = problem(6)
    info = attack(clf, x, y, seed=0, return_info=True)
    assert info.norm == attack.bound[0] == norm
    assert info.distance.allclose(lengths(info.images - x, norm))
    assert info.accuracy(0.1) == (predicted(clf, info.images) == y).double().mean()


@every
def test_tells_what_it_did(perturbation):
    counter = cases.PassCounter(cases.cnn_bn_dropout())
    clf, x, y = cases.classifier(counter), cases.images(6), cases.labels(6)
    predicted(clf, x)
    counter.reset()
    info = perturbation(clf, x, y, seed=cases.seeds(6), return_info=True)
    for values in (info.forwards, info.backwards, info.seconds, info.success, info.distance):
        assert values.shape == (6,)
    assert float(info.forwards.sum()) == pytest.approx(counter.forwards - 6)  # without the last look
    assert float(info.backwards.sum()) == pytest.approx(counter.backwards)
    assert info.success.equal(predicted(clf, info.images) != y)
    assert info.distance.allclose(lengths(info.images - x, info.norm))
    assert info.seconds.sum() > 0
    counter.reset()
    seen = perturbation(clf, x, y, seed=cases.seeds(6), return_info="search")
    assert seen.images.equal(info.images)
    assert (seen.success, seen.distance) == (None, None)
    assert float(seen.forwards.sum()) == pytest.approx(counter.forwards)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_each_image_may_have_its_radius(attack):
    clf, x, y = problem()
    radii = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1, 0.2], dtype=torch.float64)
    info = attack(clf, x, y, seed=cases.seeds(6), eps=radii, return_info=True)
    reach = 1.5 if isinstance(attack, NFGSM) else 1.0
    norm = "linf" if isinstance(attack, NFGSM) else info.norm
    assert (lengths(info.images - x, norm) <= reach * radii * (1 + 1e-9)).all()
    for i, radius in enumerate(radii.tolist()):
        alone = attack(clf, x[i : i + 1], y[i : i + 1], seed=cases.seeds(6)[i : i + 1], eps=radius)
        assert torch.allclose(alone[0], info.images[i], rtol=0, atol=1e-11)
    assert attack(clf, x, y, seed=0, eps=0.07).equal(
        attack(clf, x, y, seed=0, eps=torch.full((6,), 0.07, dtype=x.dtype))
    )


def test_wrong_radii_are_refused():
    clf, x, y = problem(2)
    for bad, message in (
        (-0.1, "eps: expected finite radii of at least 0"),
        (torch.ones(3), r"eps: .* one or \(2,\), got shape \(3,\)"),
        (float("nan"), "eps: expected finite radii"),
        (8.0, r"eps: expected radii in \[0, 1\], as pixels are, got 8; divide by 255"),
    ):
        with pytest.raises(ValueError, match=message):
            FGSM()(clf, x, y, seed=0, eps=bad)
    for attack in (GaussianNoise(), FMN(), Mixture({FGSM(): 0.5})):
        with pytest.raises(
            ValueError, match=f"eps: expected None for {type(attack).__name__}, which has no setting `eps`"
        ):
            attack(clf, x, y, seed=0, eps=0.1)
    pytest.importorskip("torchattacks")
    with pytest.raises(ValueError, match="eps: expected the setting of TorchAttack alone"):
        TorchAttack("FGSM", eps=0.1)(clf, x, y, seed=0, eps=0.1)


# Targets


def test_a_target_for_all_images_or_for_each():
    clf, x, y = problem(16)
    attack = PGD(0.3, steps=15)
    reached = attack(clf, x, y, seed=0, target=1)
    assert reached.equal(PGD(0.3, steps=15, targeted=1)(clf, x, y, seed=0))
    assert reached[y == 1].equal(x[y == 1])
    assert (predicted(clf, reached) == 1).all()
    target = (y + 1 + torch.arange(16) % 2) % 3
    assert predicted(clf, attack(clf, x, y, seed=0, target=target)).equal(target)
    several = PGD(0.3, steps=15, restarts=3)(clf, x, y, seed=0, target=target)
    assert predicted(clf, several).equal(target)


def test_wrong_targets_are_refused():
    clf, x, y = problem(2)
    for bad in (3, torch.tensor([0, 3])):
        with pytest.raises(ValueError, match=r"target: expected class indices in \[0, 2\]"):
            PGD()(clf, x, y, seed=0, target=bad)
    with pytest.raises(ValueError, match=r"targeted: expected class indices in \[0, 2\]"):
        PGD(targeted=3)(clf, x, y, seed=0)
    for attack in (FGSM(), FAB(0.1), APGD()):
        with pytest.raises(ValueError, match="target: expected None for"):
            attack(clf, x, y, seed=0, target=1)
    for bad in (-1, True, "first"):
        with pytest.raises(ValueError, match="targeted: "):
            PGD(targeted=bad)


# The objective of TRADES, and averaged gradients


def test_kl_is_that_of_trades():
    clf, x, y = problem()
    attack = PGD(0.1, steps=10, objective="kl")
    seeds = cases.seeds(6)
    from robustsigma.engine import noise

    with clf.frozen():
        clean = clf.logits(x).softmax(1)
    point = (x + 0.001 * noise.gaussian(noise.fold(seeds, "start"), (3, 8, 8), x.dtype)).clamp(0, 1)
    for _ in range(10):
        point.requires_grad_()
        loss = torch.nn.functional.kl_div(clf(point).log_softmax(1), clean, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        point = (point + 0.025 * gradient.sign()).detach()
        point = torch.minimum(torch.maximum(point, x - 0.1), x + 0.1).clamp(0, 1)
    assert torch.allclose(attack(clf, x, y, seed=seeds), point, rtol=0, atol=1e-12)
    assert torch.allclose(attack(clf, x, (y + 1) % 3, seed=seeds), point, rtol=0, atol=1e-12)  # whatever the label


@pytest.mark.parametrize(
    "attack", [FGSM(eot=3), NFGSM(eot=3), PGD(steps=2, eot=3), APGD(steps=2, eot=3), FMN(steps=2, eot=3)]
)
def test_gradients_are_averaged_over_passes(attack):
    counter = cases.PassCounter(cases.mlp())
    clf, x, y = problem(4, counter)
    counter.reset()
    attack(clf, x, y, seed=0)
    assert counter.backwards % 3 == 0
    assert counter.backwards >= 3 * 4


# Curves over the radius


@pytest.mark.parametrize(
    "attack", [FGSM(), APGD(steps=10), APGD(steps=10, norm="l2"), AutoAttack(steps=3, queries=5)], ids=str
)
def test_several_radii_in_one_call(attack):
    clf, x, y = problem(24)
    y[:2] = (y[:2] + 1) % 3
    radii = [0.05, 0.005, 0.01] if attack.norm == "linf" else [0.5, 0.05, 0.1]
    found = attack_at_radii(attack, clf, x, y, radii, seed=cases.seeds(24))
    assert found.distance[:2].tolist() == [0, 0]
    wrong = y != predicted(clf, x)
    for radius in sorted(radii):
        alone = attack(clf, x, y, seed=cases.seeds(24), eps=radius, return_info=True)
        wrong |= alone.success
        assert float(found.accuracy(radius)) == pytest.approx(float((~wrong).double().mean()))
    assert found.success.equal(predicted(clf, found.images) != y)
    assert found.accuracy([0.0, *sorted(radii)]).diff().max() <= 0
    assert (found.distance <= max(radii) * (1 + 1e-6)).all()
    with pytest.raises(ValueError, match="radii: expected at least one"):
        attack_at_radii(attack, clf, x, y, [], seed=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", [FMN, FAB])
def test_the_smallest_change_of_a_linear_network(norm, kind):
    """Of two classes, the distance to the boundary is the gap of the logits over the dual norm of its gradient."""
    clf, x, y = problem(16, cases.linear(classes=2, gain=0.5))
    with clf.frozen():
        logits = clf.logits(x)
    weight = (clf.net[1].weight[0] - clf.net[1].weight[1]).double() / clf.std.flatten().repeat_interleave(64)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    wanted = (logits[:, 0] - logits[:, 1]).abs() / weight.norm(dual)
    found = kind(norm=norm, steps=300 if kind is FMN else 20)(clf, x, y, seed=0, return_info=True)
    assert found.success.all()
    assert (found.distance >= wanted * (1 - 1e-6)).all()
    if norm == "l1":  # the pixels of the largest weights soon meet their bounds
        exact = onto_hyperplane(x.flatten(1), weight.expand(16, -1), _offset(clf, x, logits, weight), norm)
        wanted = lengths(exact, norm)
    assert (found.distance <= wanted * 1.08).all()


def _offset(clf, x, logits, weight):
    """Return the constant of the boundary, weights . x = constant."""
    return (weight * x.flatten(1)).sum(1) - (logits[:, 0] - logits[:, 1])


def test_the_curve_s_numbers():
    clf, x, y = problem(25)
    y[0] = (y[0] + 1) % 3
    found = FMN(steps=60)(clf, x, y, seed=0, return_info=True)
    distance = found.smallest_distance()
    assert distance[0] == 0
    assert found.median_distance() == pytest.approx(float(distance.median()))
    radii = torch.linspace(0, 0.1, 20001, dtype=torch.float64)
    assert found.area(0.1) == pytest.approx(float(torch.trapezoid(found.accuracy(radii), radii)) / 0.1, abs=1e-4)
    assert float(found.accuracy(0.0)) == 24 / 25
    none = FMN(steps=1)(clf, x[1:], y[1:], seed=0, return_info=True)
    assert none.median_distance() == torch.inf
    assert none.area(0.1) == pytest.approx(1)
    with pytest.raises(ValueError, match="return_info: expected True"):
        FMN(steps=1)(clf, x, y, seed=0, return_info="search").median_distance()


# Projections


def test_the_projection_onto_the_l1_ball_is_the_nearest_point():
    x, source = cases.images(8, dtype=torch.float64).flatten(1), cases.generator(2)
    change = torch.randn(x.shape, generator=source, dtype=torch.float64)
    room = torch.where(change > 0, 1 - x, x)
    eps = torch.tensor([0.0, 0.1, 1.0, 5.0, 20.0, 40.0, 80.0, 1e3], dtype=torch.float64)
    got = onto_l1_ball(change, room, eps)
    assert (got.abs().sum(1) <= eps + 1e-9).all()
    assert (got.abs() <= room + 1e-12).all()
    assert got[-1].allclose(torch.minimum(change.abs(), room)[-1].copysign(change[-1]))
    for _ in range(50):  # no other point of the set is nearer
        other = torch.rand(x.shape, generator=source, dtype=torch.float64) * room * change.sign()
        other = other * (eps / other.abs().sum(1)).clamp(max=1)[:, None]
        away = got + 0.5 * (other - got)
        assert ((away - change).norm(dim=1) >= (got - change).norm(dim=1) - 1e-9).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_projection_onto_a_hyperplane(norm):
    x, source = cases.images(6, dtype=torch.float64).flatten(1), cases.generator(3)
    weights = torch.randn(x.shape, generator=source, dtype=torch.float64)
    weights[0] = 0
    for gap in (0.01, -1.0, 10.0):
        offset = (weights * x).sum(1) + gap
        change = onto_hyperplane(x, weights, offset, norm)
        assert change[0].abs().max() == 0  # no way
        assert ((weights * (x + change)).sum(1) - offset)[1:].abs().max() < 1e-9
        assert (x + change).min() >= 0
        assert (x + change).max() <= 1
        for _ in range(20):  # along the hyperplane, nothing within bounds is shorter
            free = torch.randn(x.shape, generator=source, dtype=torch.float64) * (x + change > 0) * (x + change < 1)
            base = weights * (x + change > 0) * (x + change < 1)
            free = free - base * ((free * base).sum(1) / base.square().sum(1).clamp(min=1e-9))[:, None]
            other = change + 1e-4 * free
            assert (lengths(other, norm) >= lengths(change, norm) - 1e-9)[1:].all()


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_every_loss_has_a_gradient_for_every_label_and_target(loss, classes):
    logits = torch.randn(classes, dtype=torch.float64, generator=cases.generator(1))
    for label, target in permutations(range(classes), 2):
        point = logits[None].clone().requires_grad_(True)
        value = attack_loss(point, torch.tensor([[label, target]]), loss)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        third = int(logits.topk(min(3, classes)).indices[-1])
        at_its_end = loss == "dlr" and classes > 2 and label == third  # z_1 - z_3 over itself, of a misled network
        assert bool((gradient.abs() > 1e-6).any()) != at_its_end
