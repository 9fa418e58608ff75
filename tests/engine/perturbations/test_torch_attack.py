"""The adapter of torchattacks: what it fills in, checks, restores and refuses; and that its attacks agree with ours."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import cases
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from robustsigma import FGSM, PGD, Mixture, MixtureComponent, Perturbation

torchattacks = pytest.importorskip("torchattacks")

from robustsigma import TorchAttack  # noqa: E402
from robustsigma.engine.global_rng import key_of, temporary_seed  # noqa: E402
from robustsigma.engine.perturbations import torchattacks_adapter  # noqa: E402

CLASSES = 5
QUICK = {
    "APGDT": {"steps": 2},
    "AutoAttack": {"version": "rand", "steps": 1},
    "CW": {"steps": 3},
    "EADEN": {"binary_search_steps": 2, "max_iterations": 10},
    "EADL1": {"binary_search_steps": 2, "max_iterations": 10},
    "FAB": {"steps": 2},
    "OnePixel": {"steps": 1},
    "PGDRS": {"steps": 1, "noise_batch_size": 2},
    "PGDRSL2": {"steps": 1, "noise_batch_size": 2},
    "Pixle": {"restarts": 1, "max_iterations": 2, "x_dimensions": (1, 2), "y_dimensions": (1, 2)},
    "SPSA": {"nb_sample": 4},
    "SparseFool": {"steps": 2},
    "Square": {"n_queries": 4},
}


def problem(net: nn.Module | None = None, count: int = 4, **kwargs):
    clf = cases.classifier(cases.mlp(classes=CLASSES) if net is None else net, **kwargs)
    x = cases.images(count)
    with clf.frozen():
        y = clf.logits(x).argmax(1)
    return clf, x, y, cases.seeds(count)


def states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("name", torchattacks_adapter.names())
def test_every_attack_runs(name):
    """In double precision, channels-last and under inference mode, on which many stumble by themselves."""
    net = cases.cnn_bn_dropout(classes=10).double().to(memory_format=torch.channels_last)
    clf, x, _, seed = problem(net)
    x = x.double().to(memory_format=torch.channels_last)
    before, attack = states(), TorchAttack(name, QUICK.get(name, {}))
    kept = cases.state_of(clf)
    with torch.inference_mode():
        got = attack(clf, x, 1, seed=seed)
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    assert cases.state_of(clf) == kept
    assert states() == before


@pytest.mark.parametrize("name", ["PGD", "APGD", "Square", "MIFGSM", "SPSA"])
def test_attacks_raise_the_loss_within_their_radius(name):
    clf, x, y, seed = problem(count=32)
    got = TorchAttack(name, {"n_queries": 100} if name == "Square" else {}, eps=0.1)(clf, x, y, seed=seed)
    assert (got - x).abs().max() <= 0.1 + 1e-6
    with clf.frozen():
        before, after = (nn.functional.cross_entropy(clf.logits(images), y) for images in (x, got))
    assert after > before + (0.01 if name == "SPSA" else 0.1)


@pytest.mark.reference
@pytest.mark.parametrize("net", [cases.linear, cases.mlp, cases.cnn_bn_dropout])
def test_ours_agree_with_torchattacks_on_its_own(net):
    """The package by itself, not through the adapter; the same start, that is none."""
    clf, x, y = cases.classifier(net()), cases.images(16), cases.labels(16)
    clf.eval()
    pairs = [
        (FGSM(0.05), torchattacks.FGSM(clf, eps=0.05)),
        (PGD(0.05, 0.012, 6, False), torchattacks.PGD(clf, eps=0.05, alpha=0.012, steps=6, random_start=False)),
        (
            PGD(0.8, 0.2, 6, False, norm="l2"),
            torchattacks.PGDL2(clf, eps=0.8, alpha=0.2, steps=6, random_start=False),
        ),
    ]
    for ours, theirs in pairs:
        got = ours(clf, x, y, seed=0)
        assert (got - x).abs().max() > 0.04
        assert torch.allclose(got, theirs(x, y), rtol=0, atol=2e-6), ours


@pytest.mark.reference
@pytest.mark.parametrize("net", [cases.linear, cases.mlp, cases.cnn_bn_dropout])
def test_the_adapter_changes_nothing(net):
    clf, x, y = cases.classifier(net()), cases.images(16), cases.labels(16)
    for name, arguments in {
        "FGSM": {"eps": 0.05},
        "PGD": {"eps": 0.05, "alpha": 0.012, "steps": 4, "random_start": False},
        "PGDL2": {"eps": 0.8, "steps": 4, "random_start": False},
        "MIFGSM": {"eps": 0.05},
        "DeepFool": {"steps": 5},
    }.items():
        got = TorchAttack(name, arguments)(clf, x, y, seed=0)
        with clf.frozen():
            wanted = getattr(torchattacks, name)(clf, **arguments)(x, y)
        assert torch.allclose(got, wanted, rtol=0, atol=2e-6), name


def test_targets_of_the_package_are_filled_in():
    """The number of targets and the seed come from the problem, AutoAttack's steps reach its parts."""
    victim = torchattacks_adapter.Victim(None, torch.device("cpu"))
    assert torchattacks_adapter.build("APGDT", victim, {}, None, classes=7, seed=3).n_target_classes == 6
    assert torchattacks_adapter.build("Square", victim, {}, None, classes=7, seed=3).seed == 3
    assert torchattacks_adapter.build("Square", victim, {"seed": 5}, None, classes=7, seed=3).seed == 5
    assert torchattacks_adapter.build("PIFGSM", victim, {}, 0.1, classes=7, seed=3).max_epsilon == 0.1
    parts = torchattacks_adapter.build("AutoAttack", victim, {"steps": 100}, 0.1, classes=7, seed=3)._autoattack.attacks
    assert [getattr(part, "steps", None) for part in parts] == [100, 100, 100, None]
    assert [part.eps for part in parts] == [0.1] * 4
    assert [part.seed for part in parts] == [3] * 4


@pytest.mark.parametrize(("classes", "targets"), [(5, 4), (10, 9), (1000, 9)])
def test_autoattack_takes_nine_targets_and_a_hundred_steps_unless_told_otherwise(classes, targets):
    victim = torchattacks_adapter.Victim(None, torch.device("cpu"))

    def parts(**arguments):
        built = torchattacks_adapter.build("AutoAttack", victim, arguments, None, classes=classes, seed=0)
        return built._autoattack.attacks

    ce, apgdt, fab, _ = parts()
    assert (ce.steps, apgdt.steps, fab.steps) == (100, 100, 100)
    assert (apgdt.n_target_classes, fab.n_target_classes) == (targets, targets)
    _, apgdt, fab, _ = parts(steps=7, n_classes=4)
    assert (apgdt.steps, fab.steps, apgdt.n_target_classes, fab.n_target_classes) == (7, 7, 3, 3)
    assert {part.steps for part in parts(version="rand")} == {100}
    alone = torchattacks_adapter.build("APGDT", victim, {}, None, classes=classes, seed=0)
    assert alone.n_target_classes == targets


def test_autoattack_breaks_what_its_first_part_breaks():
    clf, x, y, seed = problem(count=16)
    results = {}
    for name, arguments in (("APGD", {}), ("AutoAttack", {"steps": 10, "version": "rand"})):
        moved = TorchAttack(name, arguments, eps=0.02)(clf, x, y, seed=seed)
        with clf.frozen():
            results[name] = clf.logits(moved).argmax(1) != y
    assert results["APGD"].sum() > 0
    assert (results["AutoAttack"] | ~results["APGD"]).all()


def test_chunks_of_the_network_are_bounded_in_both_directions():
    counter = cases.PassCounter(cases.mlp(classes=CLASSES))
    clf, x, y, seed = problem(counter, count=7, chunk_size=3)
    whole = problem(count=7)[0]
    attack = TorchAttack("PGD", {"steps": 2}, eps=0.05)
    counter.reset()
    got = attack(clf, x, y, seed=seed)
    assert counter.largest == 3
    assert torch.allclose(got, attack(whole, x, y, seed=seed), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["PGD", "DeepFool", "CW"])
def test_a_graph_that_fits_is_kept_and_one_that_does_not_is_made_again(name):
    made = {}
    for chunk in (5, 2):
        counter = cases.PassCounter(cases.mlp().double())
        clf, x, y, seed = problem(counter, count=5, chunk_size=chunk)
        counter.reset()
        made[chunk] = TorchAttack(name, steps=3)(clf, x, y, seed=seed)
        if name == "PGD":
            assert (counter.forwards, counter.backwards) == ((1 + 15, 15) if chunk == 5 else (1 + 30, 15))
    torch.testing.assert_close(made[5], made[2])


def test_a_graph_that_does_not_fit_after_all_is_made_again():
    class Narrow(nn.Module):
        """Has memory for few images with gradients."""

        def __init__(self):
            super().__init__()
            self.net = cases.mlp().double()

        def forward(self, images):
            if images.requires_grad and len(images) > 2:
                raise torch.OutOfMemoryError("too many")
            return self.net(images)

    net = Narrow()
    clf, x, y, seed = problem(net, count=5)
    found = TorchAttack("PGD", steps=3)(clf, x, y, seed=seed)
    wanted = TorchAttack("PGD", steps=3)(cases.classifier(net.net), x, y, seed=seed)
    torch.testing.assert_close(found, wanted)


def test_modes_of_submodules_come_back():
    """torchattacks calls .train() on the whole network; a frozen part would be switched on."""
    clf, x, y, seed = problem(cases.cnn_bn_dropout())
    before = {name: module.training for name, module in clf.named_modules()}
    assert set(before.values()) == {True, False}
    TorchAttack("PGD", {"steps": 1})(clf, x, y, seed=seed)
    assert {name: module.training for name, module in clf.named_modules()} == before


@pytest.mark.parametrize("raising", [False, True])
def test_global_generators_come_back(raising):
    before = states()
    with pytest.raises(RuntimeError) if raising else temporary_seed(4), temporary_seed(5):
        drawn = torch.rand(1).item(), np.random.random(), random.random()  # noqa: NPY002
        if raising:
            raise RuntimeError
    assert states() == before
    with temporary_seed(5):
        assert (torch.rand(1).item(), np.random.random(), random.random()) == drawn  # noqa: NPY002
    assert states() == before


def test_the_callers_seed_is_the_last_that_a_cuda_which_has_not_started_is_given(monkeypatch):
    given, seed, before = [], torch.manual_seed, torch.initial_seed()
    monkeypatch.setattr(torch, "manual_seed", lambda number: given.append(number) or seed(number))
    with temporary_seed(5):
        pass
    assert given == [5, before]


def test_the_key_depends_on_every_seed_and_on_their_order():
    keys = [key_of(torch.tensor(seeds), "a") for seeds in ([1, 2], [2, 1], [1, 3], [1, 2, 3])]
    assert len({*keys, key_of(torch.tensor([1, 2]), "b")}) == 5
    assert key_of(torch.tensor([1, 2]), "a") == keys[0]
    assert all(0 <= key < 2**31 for key in keys)


def test_attacks_without_a_radius_are_cut():
    clf, x, y, seed = problem(count=32)
    free = TorchAttack("DeepFool")(clf, x, y, seed=seed)
    far = (free - x).flatten(1).norm(dim=1)
    eps = float(far.median())
    cut = TorchAttack("DeepFool", eps=eps)(clf, x, y, seed=seed)
    inside = far <= eps + 1e-6
    assert 0 < inside.sum() < 32
    assert torch.equal(cut[inside], free[inside])
    assert torch.equal(cut[~inside], x[~inside])
    largest = (free - x).flatten(1).abs().amax(1)
    cut = TorchAttack("DeepFool", eps=float(largest.median()), norm="linf")(clf, x, y, seed=seed)
    assert torch.equal(cut.ne(x).flatten(1).any(1), largest <= largest.median() + 1e-6)


def test_leaving_its_own_radius_is_an_error(monkeypatch):
    def far(self, images, labels):
        return (images + 0.3).clamp(0, 1)

    monkeypatch.setattr(torchattacks.FGSM, "forward", far)
    clf, x, y, seed = problem()
    with pytest.raises(ValueError, match=r"eps: expected FGSM to stay within 0.1 \(linf\), got 0.3 away"):
        TorchAttack("FGSM", eps=0.1)(clf, x, y, seed=seed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchAttack("Foo"), "name: expected one of 'APGD', .*'VNIFGSM', got 'Foo'"),
        (lambda: TorchAttack("MultiAttack"), "name: "),
        (lambda: TorchAttack("PGD", {"step": 3}), "arguments: expected of PGD: eps, alpha, steps, .*, got step"),
        (lambda: TorchAttack("PGD", {"model": 3}), "arguments: expected of PGD: .*, got model"),
        (lambda: TorchAttack("PGD", [3]), r"arguments: expected a mapping from names, got \[3\]"),
        (lambda: TorchAttack("PGD", {"steps": 1}, steps=2), "arguments: expected each to be given once, got steps"),
        (lambda: TorchAttack("PGD", {"eps": 0.1}, eps=0.2), "eps: expected to be given once, .* got 0.2 and 0.1"),
        (
            lambda: TorchAttack("AutoAttack", {"version": "x"}),
            "arguments: expected valid arguments of AutoAttack, got ",
        ),
        (lambda: TorchAttack("AutoAttack", {"steps": 0}), "steps: expected an integer of at least 1, got 0"),
        (lambda: TorchAttack("PGD", eps=-1), "eps: expected a finite number"),
        (lambda: TorchAttack("CW", eps=1, norm="l0"), "norm: expected one of"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("attack", "classes", "channels", "message"),
    [
        (TorchAttack("AutoAttack"), 3, 3, "net: expected at least 4 classes for AutoAttack of torchattacks, got 3"),
        (TorchAttack("APGDT"), 3, 3, "net: expected at least 4 classes"),
        (TorchAttack("APGD", {"loss": "dlr"}), 2, 3, "net: expected at least 3 classes"),
        (TorchAttack("AutoAttack", {"version": "rand"}), 2, 3, "net: expected at least 3 classes"),
        (TorchAttack("APGDT", n_classes=6), 5, 3, "n_classes: expected an integer from 2 to 5, got 6"),
        (TorchAttack("JSMA"), 5, 3, "net: expected at least 10 classes"),
        (TorchAttack("TIFGSM"), 5, 1, "images: expected 3 channels for TIFGSM, got 1"),
    ],
)
def test_problems_that_torchattacks_cannot_do(attack, classes, channels, message):
    clf = cases.classifier(cases.mlp(channels, classes=classes), mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match=message):
        attack(clf, cases.images(channels=channels), 0, seed=0)


def test_arguments_are_the_settings_own():
    given = {"steps": 2}
    attack = TorchAttack("PGD", given)
    given["steps"] = 9
    assert attack.arguments == {"steps": 2}
    assert attack != TorchAttack("PGD", {"steps": 3})
    assert attack.batch_dependent
    assert not PGD().batch_dependent


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    torchattacks_adapter._library.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'robustsigma\[attacks\]'"):
        TorchAttack("PGD")
    torchattacks_adapter._library.cache_clear()


def test_arguments_by_keyword():
    attack = TorchAttack("PGD", eps=0.05, steps=2)
    assert attack == TorchAttack("PGD", {"steps": 2}, eps=0.05)
    assert replace(attack, eps=0.1) == TorchAttack("PGD", {"steps": 2}, eps=0.1)
    assert TorchAttack("PGD", {"steps": 2}, alpha=0.01).arguments == {"steps": 2, "alpha": 0.01}


@pytest.mark.parametrize(("given", "norm"), [("Linf", "linf"), ("L2", "l2"), ("linf", "linf"), ("l2", "l2")])
def test_a_norm_is_also_the_attacks_own(given, norm):
    attack = TorchAttack("Square", eps=0.5, norm=given, n_queries=3)
    assert attack.norm == norm
    made = attack._build(torchattacks_adapter.Victim(None, torch.device("cpu")), 10, 0)
    assert made.norm == {"linf": "Linf", "l2": "L2"}[norm]
    assert TorchAttack("CW", eps=0.5, norm=given).norm == norm  # takes none


def test_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--p", type=Perturbation)
    text = """
p:
  class_path: robustsigma.TorchAttack
  init_args: {name: Square, arguments: {n_queries: 50, norm: L2}, eps: 0.5}
"""
    made = parser.instantiate(parser.parse_string(text)).p
    assert made == TorchAttack("Square", {"n_queries": 50, "norm": "L2"}, eps=0.5)


def test_a_mixture_says_that_a_part_depends_on_the_batch():
    attack = TorchAttack("FGSM")
    assert attack.batch_dependent
    shares = MixtureComponent(attack, 0.5), MixtureComponent(FGSM(0.1), 0.5)
    assert Mixture(shares).batch_dependent
    assert Mixture(shares[::-1]).batch_dependent
    assert not Mixture((MixtureComponent(FGSM(0.1), 0.5),)).batch_dependent
