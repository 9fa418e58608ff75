"""AutoAttack: what it runs, what it reports, how it resumes, and the networks that it flags."""

from __future__ import annotations

import cases
import pytest
import torch
from torch import nn

from robustsigma import APGD, FAB, FGSM, AttackState, AutoAttack, Square
from robustsigma.engine.checks import inspect_classifier

EPS = {"linf": 0.01, "l2": 0.1, "l1": 0.7}
SMALL = {"steps": 4, "queries": 12}


def problem(count=24, classes=10, net=None, **kwargs):
    net = cases.mlp(classes=classes) if net is None else net
    clf, x = cases.classifier(net, **kwargs), cases.images(count)
    return clf, x, predicted(clf, x)


def predicted(clf, x):
    with clf.frozen():
        return clf.logits(x).argmax(1)


def test_the_versions_are_the_reference_s():
    standard = AutoAttack(0.1).attacks
    assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert standard["apgd-ce"] == APGD(0.0)
    assert standard["apgd-t"] == APGD(0.0, loss="dlr-targeted", targets=9)
    assert standard["fab-t"] == FAB(0.0, targets=9)
    assert standard["square"] == Square(0.0, 5000, rescale=False)
    l1 = AutoAttack(10.0, "l1").attacks
    assert (l1["apgd-ce"].restarts, l1["apgd-ce"].wide_start, l1["apgd-t"].targets) == (5, True, 5)
    plus = AutoAttack(0.1, version="plus").attacks
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[name].restarts for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    assert {a.eot for a in AutoAttack(0.1, version="rand").attacks.values()} == {20}


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_its_reports_are_what_the_network_says(norm, version):
    counter = cases.PassCounter(cases.mlp(classes=10))
    clf, x, y = problem(net=counter)
    y[:3] = (y[:3] + 1) % 10  # misclassified from the start
    counter.reset()
    attack = AutoAttack(EPS[norm], norm, version, **SMALL)
    info = attack(clf, x, y, seed=0, return_info=True)
    assert info.forwards.sum() + len(x) == counter.forwards  # and the last look
    assert info.backwards.sum() == counter.backwards
    cost = attack.cost(10)
    assert (info.forwards.max(), info.backwards.max()) <= cost
    assert info.success.equal(predicted(clf, info.images) != y)
    assert info.success.equal(info.found_by >= 0)
    assert (info.found_by[:3] == 0).all()
    assert (info.found_by[3:] != 0).all()
    assert 0 < (info.found_by < 0).sum() < 21
    assert info.images[:3].equal(x[:3])
    assert (info.distance <= attack.eps * (1 + 1e-5)).all()
    assert (info.distance[3:] > 0).all()
    assert info.seconds.sum() > 0
    accuracies = attack.accuracies(info.found_by)
    assert accuracies["clean"] == 21 / 24
    assert list(accuracies.values()) == sorted(accuracies.values(), reverse=True)
    assert list(accuracies.values())[-1] == float((~info.success).double().mean())


@pytest.mark.parametrize("attack", [AutoAttack(1e-4, **SMALL), AutoAttack(1e-4, version="plus", **SMALL)])
def test_an_image_that_withstands_all_costs_what_was_said(attack):
    clf, x, y = problem(4)
    info = attack(clf, x, y, seed=0, return_info=True)
    assert (info.found_by == -1).all()
    cost = attack.cost(10)
    assert info.forwards.tolist() == [cost.forwards] * 4
    assert info.backwards.tolist() == [cost.backwards] * 4
    assert cost.minutes(clf, x, 400) > 0
    assert cost.minutes(clf, x, 0) == 0


def test_the_standard_s_cost():
    assert tuple(AutoAttack(0.1).cost(10)) == (1 + 10 * 101 + 9 * 200 + 5000, 10 * 100 + 900)


def test_each_attack_sees_what_is_left():
    """The worst case over the attacks, each run alone on the images that the ones before left."""
    clf, x, y = problem()
    attack = AutoAttack(EPS["linf"], **SMALL)
    info = attack(clf, x, y, seed=cases.seeds(24), return_info=True)
    left = torch.arange(24)
    for number, single in enumerate(attack.attacks.values(), 1):
        found = single(clf, x[left], y[left], seed=cases.seeds(24)[left], eps=attack.eps, return_info=True)
        assert info.found_by[left[found.success]].tolist() == [number] * int(found.success.sum())
        assert info.images[left[found.success]].equal(found.images[found.success])
        left = left[~found.success]
    assert (info.found_by[left] == -1).all()


class Interrupt(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("when", [1, 7, 30, 60])
def test_an_interrupted_attack_resumes(when):
    clf, x, y = problem()
    attack = AutoAttack(EPS["linf"], **SMALL)
    wanted = attack(clf, x, y, seed=0, return_info=True)
    fractions, saved = [], {}

    def stop(state):
        fractions.append(state.fraction)
        saved.update(state.state_dict())
        if len(fractions) == when:
            raise Interrupt

    state = AttackState(stop)
    with pytest.raises(Interrupt):
        attack(clf, x, y, seed=0, state=state)
    assert fractions == sorted(fractions)
    assert 0 < fractions[-1] < 1
    assert state.name in attack.attacks
    for resumed in (state, AttackState()):
        if resumed is not state:
            resumed.load_state_dict(saved)
        resumed.on_progress = None
        got = attack(clf, x, y, seed=0, return_info=True, state=resumed)
        assert got.images.equal(wanted.images)
        assert got.found_by.equal(wanted.found_by)
        assert (resumed.fraction, resumed.remaining) == (1.0, int((wanted.found_by < 0).sum()))
    with pytest.raises(ValueError, match="state: expected one of the same attack, images, labels and seeds"):
        attack(clf, x, y, seed=1, state=state)


def test_only_attacks_in_parts_take_a_state():
    clf, x, y = problem(2)
    with pytest.raises(ValueError, match="state: expected None for FGSM, which is of one part"):
        FGSM()(clf, x, y, seed=0, state=AttackState())


# Networks that are not what they seem


def flags_of(clf, x, y, attack, classes=10):
    info = attack(clf, x, y, seed=0, return_info=True)
    found = {flag.code for flag in attack.flags(info.found_by, info.zero_gradient, classes)}
    return found | {flag.code for flag in inspect_classifier(clf, x, y).flags}, info


class Steps(nn.Module):
    """A network of rounded images, which has no gradients."""

    def __init__(self):
        super().__init__()
        self.net = cases.linear(classes=10)

    def forward(self, x):
        return self.net((x * 255).round() / 255)


class Noisy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.source = net, torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.net(x + 0.5 * torch.randn(x.shape, generator=self.source))


def test_a_sound_network_has_no_flags():
    clf, x, y = problem(12, net=cases.linear(classes=10))
    assert flags_of(clf, x, y, AutoAttack(0.05, steps=20, queries=50))[0] == {"not_standard"}


def test_masked_gradients_are_flagged():
    clf, x, y = problem(24, net=Steps())
    attack = AutoAttack(0.1, steps=3, queries=400)
    found, info = flags_of(clf, x, y, attack)
    assert found >= {"zero_gradient", "search_is_better"}
    after = attack.accuracies(info.found_by)
    assert after["square"] < after["fab-t"]


@pytest.mark.unsound_networks
@pytest.mark.filterwarnings("ignore:net:UserWarning")
def test_a_randomized_network_is_flagged():
    clf, x, y = problem(12, net=Noisy(cases.linear(classes=10)))
    assert "random_outputs" in flags_of(clf, x, y, AutoAttack(0.02, **SMALL))[0]


def test_averaged_gradients_mislead_a_randomized_network_more_often():
    clf, x, _ = problem(24, net=Noisy(cases.linear(classes=10)))
    plain = cases.classifier(clf.net.net)
    y = predicted(plain, x)
    wrong = [predicted(plain, APGD(0.1, steps=6, eot=eot)(clf, x, y, seed=0)) != y for eot in (1, 10)]
    assert wrong[1].sum() >= wrong[0].sum()
    gradients = APGD(0.1, steps=6, eot=10)(clf, x, y, seed=0, return_info=True).backwards
    assert (gradients % 10 == 0).all()


def test_saturated_networks_and_probabilities_are_flagged():
    clf, x, y = problem(24, net=cases.linear(classes=10, gain=30000.0))
    assert "zero_gradient" in flags_of(clf, x, y, AutoAttack(1e-4, **SMALL))[0]
    clf, x, y = problem(24, net=cases.Probabilities(cases.linear(classes=10)))
    assert "probabilities" in flags_of(clf, x, y, AutoAttack(0.01, **SMALL))[0]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes_are_flagged_and_attacked(classes):
    clf, x, y = problem(12, net=cases.linear(classes=classes))
    attack = AutoAttack(0.01, **SMALL)
    assert "few_classes" in flags_of(clf, x, y, attack, classes)[0]
    with clf.frozen():
        weight = clf.net[1].weight / clf.std.flatten().repeat_interleave(64)
        logits = clf.logits(x)
    # A linear network's robust accuracy is known: each margin against the L1 length of its gradient.
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (weight[y][:, None] - weight[None]).abs().sum(2)
    robust = ((gaps > attack.eps * lengths) | (gaps == 0)).all(1)
    inside = ((x > attack.eps) & (x < 1 - attack.eps)).flatten(1).all(1)
    assert inside.all()
    got = attack(clf, x, y, seed=0, return_info=True)
    assert got.success.equal(~robust)


def test_the_network_is_restored():
    clf, x, y = problem(3)
    before = cases.state_of(clf)
    AutoAttack(0.03, **SMALL)(clf, x, y, seed=0)
    assert cases.state_of(clf) == before
