"""Attacks on a network whose parameters FSDP2 shards: gathered once, and nothing of the sharding changed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from robustsigma import PGD, Classifier
from robustsigma.engine.network_state import gathered

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3


@pytest.fixture
def group():
    """A group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    distributed.destroy_process_group()


def pair(how="one by one", **options):
    """Return a network and the same one with sharded parameters."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    plain = nn.Sequential(*layers)
    net = copy.deepcopy(plain)
    fully_shard([net[0], net[2]] if how == "together" else net[0], **options)
    return plain, fully_shard(net, **options)


def hooks(net):
    return [[*each.items()] for m in net.modules() for each in (m._forward_pre_hooks, m._forward_hooks)]


@pytest.mark.parametrize("how", ["one by one", "together"])
def test_an_attack_is_that_of_the_whole_network_and_training_goes_on_as_without_it(how, group):
    plain, net = pair(how)
    classifier, before = Classifier(net), hooks(net)
    for step in range(2):  # before the first pass, and between steps
        made = PGD(0.1, steps=3)(classifier, X, Y, seed=0)
        torch.testing.assert_close(made, PGD(0.1, steps=3)(Classifier(plain), X, Y, seed=0))
        assert hooks(net) == before
        assert all(hasattr(each, "full_tensor") and each.requires_grad for each in net.parameters())
        for each in (net, plain):
            F.cross_entropy(each(made), Y).backward()
            torch.optim.SGD(each.parameters(), 0.1).step()
        for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad, msg=f"step {step}")
            torch.testing.assert_close(mine.full_tensor(), theirs)
            mine.grad = theirs.grad = None


def test_the_parameters_are_gathered_once_whatever_is_called_inside(group, monkeypatch):
    _, net = pair()
    classifier, calls, unshard = Classifier(net), [], type(net).unshard
    for kind in {type(net), type(net[0])}:
        monkeypatch.setattr(kind, "unshard", lambda self, calls=calls: (calls.append(self), unshard(self))[0])
    with gathered(net.modules()):
        for _ in range(2):
            PGD(0.1, steps=2)(classifier, X, Y, seed=0)
            Classifier(net)(X)
    assert len(calls) == 2  # one for each group of parameters
    with pytest.raises(KeyError), gathered(net.modules()):
        raise KeyError
    assert all(hasattr(each, "full_tensor") for each in net.parameters())


def test_hooks_of_others_stay_in_their_order(group):
    _, net = pair()
    ran = []
    net.register_forward_hook(lambda *_: ran.append("before"))
    with gathered(net.modules()):
        handle = net.register_forward_hook(lambda *_: ran.append("inside"))
        net(X)
    net(X)
    handle.remove()
    net(X)
    assert ran == ["before", "inside", "before", "inside", "before"]


def test_weights_in_half_precision(group):
    plain, net = pair(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    made = PGD(0.1, steps=2)(Classifier(net), X, Y, seed=0)
    torch.testing.assert_close(made, PGD(0.1, steps=2)(Classifier(plain.bfloat16()), X, Y, seed=0))
    assert net(X).dtype == torch.bfloat16
