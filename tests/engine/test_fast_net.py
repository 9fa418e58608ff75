"""FastNet: a frozen network's own results, whatever its code does, and the network as it was."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models

from robustsigma import Classifier, IntegratedGradients
from robustsigma.engine import fast_net
from robustsigma.engine.folding import Folding

BATCH, SIZE = 2, 32


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(fast_net, "WORTH_IT", 0)
    monkeypatch.setattr(fast_net, "_WEIGHTS_PER_ELEMENT", float("inf"))
    with torch.random.fork_rng(devices=[]):  # making a layer draws
        yield


def lively(net: nn.Module) -> nn.Module:
    """Give a network statistics that are not those of a new one, in double precision."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            for tensor, low in ((module.running_mean, -0.3), (module.running_var, 0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
            if module.weight is not None:
                module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    for tensor in net.parameters():
        if tensor.ndim > 1:
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return net.double().eval()


class Block(nn.Module):
    """A convolution and its normalisation, called by a function that a test gives, and a linear layer."""

    def __init__(self, body, *, bias=False, norm=None, convolution=nn.Conv2d):
        super().__init__()
        self.convolution = convolution(3, 6, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6) if norm is None else norm
        self.linear = nn.Linear(6, 4)
        self.body, self.calls, self.flag = body, 0, False

    def forward(self, images):
        self.calls += 1
        return self.linear(self.body(self, images).mean((2, 3)))


class Same(nn.Conv2d):
    """A convolution with code of its own around the function."""

    def forward(self, images):
        return super().forward(F.pad(images, (0, 1, 0, 1)))


def usual(net, images):
    return F.relu_(net.norm(net.convolution(images)))


def used_twice(net, images):
    between = net.convolution(images)
    return net.norm(between) + between.tanh()


def read_before(net, images):
    between = net.convolution(images)
    gate = between.mean((2, 3), keepdim=True)
    return net.norm(between) * gate


def shared(net, images):
    return net.norm(net.convolution(images)) + net.second(net.convolution(images.flip(-1)))


def unnormalised(net, images):
    return net.convolution(images)


def late(net, images):
    between = net.convolution(images)
    return net.norm(between) + net.second(torch.relu(net.convolution(images) * 0 + between * 0 + 1))


def checkpointed(net, images):
    return net.norm(checkpoint(lambda x: net.convolution(torch.tanh(x)), images, use_reentrant=False))


def inside_checkpoint(net, images):
    return checkpoint(lambda x: torch.tanh(net.norm(net.convolution(x))), images, use_reentrant=False)


def viewed(net, images):
    made = usual(net, images)
    return made.view(len(made), 6, -1)[..., None]


def by_hand(net, images):
    return F.batch_norm(
        net.convolution(images), net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, eps=1e-3
    )


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # torch.jit goes, other compiled code stays

    @torch.jit.script
    def _scripted(x, weight):
        return torch.relu(torch.conv2d(x, weight)) + x


def compiled_reader(net, images):
    between = net.convolution(images)
    return net.norm(between) + _scripted(between, net.second.weight)


def changed_in_place(net, images):
    return net.norm(F.relu_(net.convolution(images)))


def added_in_place(net, images):
    between = net.convolution(images)
    between += 1
    return net.norm(between)


def input_changed(net, images):
    copied = images.detach().clone()
    between = net.convolution(copied)
    copied.add_(1)
    return net.norm(between) + images.mean()


def kept(net, images):
    net.between = net.convolution(images)
    return net.norm(net.between)


def flat(net, images):
    made = usual(net, images)
    return made.view(len(made), 6, 1, -1) + made.view(len(made), -1).mean(1)[:, None, None, None]


def read_after_a_view(net, images):
    between = net.convolution(images)
    made = net.norm(between)
    images.view(len(images), -1)  # no longer possible with other strides
    return made + between.mean()


BODIES = {
    "changed_in_place": (changed_in_place, 0),
    "added_in_place": (added_in_place, 0),
    "input_changed": (input_changed, 0),
    "kept": (kept, 0),
    "flat": (flat, 1),
    "read_after_a_view": (read_after_a_view, 0),
    "usual": (usual, 1),
    "by_hand": (by_hand, 1),
    "viewed": (viewed, 1),
    "used_twice": (used_twice, 0),
    "read_before": (read_before, 0),
    "shared": (shared, 0),
    "late": (late, 0),
    "unnormalised": (unnormalised, 0),
    "checkpointed": (checkpointed, 0),
    "inside_checkpoint": (inside_checkpoint, 0),
    "compiled_reader": (compiled_reader, 0),
}
NETS = {
    "bias": (lambda: Block(usual, bias=True), 1),
    "plain norm": (lambda: Block(usual, norm=nn.BatchNorm2d(6, affine=False, eps=1e-2)), 1),
    "subclass": (lambda: Block(usual, convolution=Same), 1),
    "batch statistics": (lambda: Block(usual, norm=nn.BatchNorm2d(6, track_running_stats=False)), 0),
    "group norm": (lambda: Block(usual, norm=nn.GroupNorm(2, 6)), 0),
    "resnet18": (lambda: models.resnet18(num_classes=4), 20),
    "densenet": (lambda: models.DenseNet(8, (2, 2), 8, memory_efficient=True, num_classes=4), None),
    "mobilenet": (lambda: models.mobilenet_v2(num_classes=4), 52),
    **{name: (lambda body=body: Block(body), pairs) for name, (body, pairs) in BODIES.items()},
}


def given():
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return images, torch.tensor([1, 3])


def expected(net, images, labels):
    """Return logits and gradient as the network itself gives them."""
    images = images.clone().requires_grad_(True)
    logits = net(images)
    return logits.detach(), torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), images)[0]


def folded(classifier):
    return len(classifier._fast._pairs)


@pytest.mark.parametrize("name", NETS)
def test_the_networks_own_results(name):
    make, pairs = NETS[name]
    net = lively(make())
    images, labels = given()
    logits, gradient = expected(net, images, labels)
    classifier = Classifier(net)
    for _ in range(2):
        with classifier.frozen():
            for _ in range(2):
                ours = classifier.score_and_gradient(images, labels)
                torch.testing.assert_close(ours[0], logits, rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(ours[1], gradient, rtol=1e-9, atol=1e-12)
                assert ours[1].is_contiguous()
                torch.testing.assert_close(classifier.logits(images), logits, rtol=1e-10, atol=1e-12)
    assert pairs is None or folded(classifier) == pairs


def test_the_first_pass_gives_the_bits_of_later_ones():
    net = lively(models.resnet18(num_classes=4)).float()
    images, labels = given()
    classifier = Classifier(net)
    with classifier.frozen():
        first = classifier.score_and_gradient(images.float(), labels)
        second = classifier.score_and_gradient(images.float(), labels)
    assert folded(classifier) == 20
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_normalisations_are_left_out_of_the_pass(monkeypatch):
    net = lively(Block(usual))
    images, labels = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        seen = []
        original = torch.batch_norm
        monkeypatch.setattr(torch, "batch_norm", lambda *a: seen.append(1) or original(*a))
        classifier.score_and_gradient(images, labels)
    assert not seen
    net(images)
    assert seen


def test_one_call_of_the_network_a_pass():
    net = lively(Block(usual))
    images, labels = given()
    classifier = Classifier(net)
    with classifier.frozen():
        for count in range(1, 4):
            classifier.score_and_gradient(images, labels)
            assert net.calls == count


@pytest.mark.parametrize("change", ["data", "copy", "load", "assign", "statistics", "eps"])
def test_changed_weights_are_seen_at_the_next_entry(change):
    net, other = lively(Block(usual)), lively(Block(usual))
    other.convolution.weight.data.mul_(1.5)
    other.norm.running_var.mul_(3)
    images, labels = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
    if change == "data":  # not noted by the tensor's version
        net.convolution.weight.data = net.convolution.weight.data * 2
    elif change == "copy":
        with torch.no_grad():
            net.convolution.weight.mul_(2)
    elif change == "statistics":
        net.norm.running_mean.add_(1)
    elif change == "eps":
        net.norm.eps = 0.5
    else:
        net.load_state_dict(other.state_dict(), assign=change == "assign")
    with classifier.frozen():
        logits, gradient = classifier.score_and_gradient(images, labels)
    theirs = expected(net, images, labels)
    torch.testing.assert_close(logits, theirs[0])
    torch.testing.assert_close(gradient, theirs[1])
    assert folded(classifier) == (0 if change == "eps" else 1)  # eps is no tensor: found out in the pass


def test_a_replaced_layer_is_watched_anew():
    net = lively(Block(usual))
    images, _ = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
    net.norm = nn.GroupNorm(2, 6).double()
    with classifier.frozen():
        torch.testing.assert_close(classifier.logits(images), net(images).detach())
    assert folded(classifier) == 0


def branching(net, images):
    between = net.convolution(images)
    return net.norm(between) if not net.flag else net.second(between)


def reading_branch(net, images):
    between = net.convolution(images)
    gate = between.mean() if net.flag else 1
    return net.norm(between) * gate


def norm_twice(net, images):
    between = net.convolution(images)
    return net.norm(between) if not net.flag else net.norm(net.second(net.norm(between)))


def reading_branch_after(net, images):
    between = net.convolution(images)
    made = net.norm(between)
    return made + between if net.flag else made


def changing_branch(net, images):
    between = net.convolution(images)
    made = net.norm(between)
    return F.relu_(made) + (between if net.flag else 0)


def keeping_branch(net, images):
    between = net.convolution(images)
    net.between = between if net.flag else None
    return net.norm(between)


def swallowing_branch(net, images):
    between = net.convolution(images)
    made, gate = net.norm(between), 1
    if net.flag:
        try:
            gate = between.mean()
        except Exception:
            gate = 2
    return made * gate


def viewing_branch(net, images):
    made = usual(net, images)
    return made.view(len(made), -1)[:, :6, None, None] if net.flag else made


BRANCHING = [
    branching, reading_branch, reading_branch_after, changing_branch, keeping_branch, swallowing_branch, viewing_branch,
    norm_twice,
]  # fmt: skip


@pytest.mark.parametrize("body", BRANCHING)
def test_a_pass_that_goes_another_way_is_made_as_it_is(body):
    net = lively(Block(body))
    images, labels = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        assert folded(classifier) == 1
        net.flag = True
        logits, gradient = classifier.score_and_gradient(images, labels)
        theirs = expected(net, images, labels)
        again = classifier.score_and_gradient(images, labels)
    for found in (logits, again[0]):
        torch.testing.assert_close(found, theirs[0])
    for found in (gradient, again[1]):
        torch.testing.assert_close(found, theirs[1])
    if body is keeping_branch:
        torch.testing.assert_close(net.between, net.convolution(images))


class Wrapped(nn.Module):
    """A convolution in a module of its own, as are the normalisation and what follows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1))
        self.rest = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.linear = nn.Linear(6, 4)

    def forward(self, images):
        return self.linear(self.rest(self.first(images)).mean((2, 3)))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("keep", [True, False])
def test_hooks_of_containers_see_the_true_values(keep, when):
    net = lively(Wrapped())
    images, labels = given()
    seen = []

    def look(module, given, output):
        seen.append(output if keep else output.clone())

    classifier = Classifier(net)
    with classifier.frozen():
        if when == "after":
            classifier.logits(images)
            assert folded(classifier) == 1
        for _ in range(2):
            with net.first.register_forward_hook(look):
                logits, gradient = classifier.score_and_gradient(images, labels)
    theirs = expected(net, images, labels)
    torch.testing.assert_close(logits, theirs[0])
    torch.testing.assert_close(gradient, theirs[1])
    assert len(seen) == 2
    for found in seen:
        torch.testing.assert_close(found.detach(), net.first(images).detach())


def test_a_second_thread_is_refused_and_changes_nothing():
    net = lively(Block(usual)).train()
    classifier = Classifier(net)
    images, _ = given()
    with classifier.frozen(), ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="one thread at a time"):
            pool.submit(lambda: IntegratedGradients(2)(classifier, images)).result()
        assert not net.training
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: IntegratedGradients(2)(classifier, images)).result()


@pytest.mark.parametrize("place", ["convolution", "norm"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_see_the_true_values(place, register):
    net = lively(Block(usual))
    images, _ = given()
    seen = []

    def look(module, *values):
        value = values[-1][0] if isinstance(values[-1], tuple) else values[-1]
        seen.append(value.detach().clone())

    with getattr(getattr(net, place), register)(look):
        net(images)
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)  # folds
        with getattr(getattr(net, place), register)(look):
            classifier.logits(images)
        classifier.logits(images)
    assert len(seen) == 2
    torch.testing.assert_close(*seen)


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
@pytest.mark.parametrize("place", ["convolution", "norm"])
@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook"]
)
def test_backward_hooks_see_the_true_gradients(place, register):
    net = lively(Block(lambda net, x: F.relu(net.norm(net.convolution(x)))))
    images, labels = given()
    seen = []

    def look(module, *gradients):
        seen.append(gradients[-1][0].clone())

    with getattr(getattr(net, place), register)(look):
        expected(net, images, labels)
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        assert folded(classifier) == 1
        with getattr(getattr(net, place), register)(look):
            classifier.score_and_gradient(images, labels)
        classifier.score_and_gradient(images, labels)
        assert folded(classifier) == 1  # and goes on as before
    assert len(seen) == 2
    torch.testing.assert_close(*seen)


def test_global_hooks_see_the_true_values():
    net = lively(Block(usual))
    images, _ = given()
    seen = []
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _, output: seen.append(output) if module is net.convolution else None
        )
        try:
            classifier.logits(images)
        finally:
            handle.remove()
    torch.testing.assert_close(seen[0], net.convolution(images).detach())


def test_outside_frozen_nothing_is_folded(monkeypatch):
    net = lively(Block(usual))
    images, _ = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
    monkeypatch.setattr(Folding, "__enter__", lambda self: pytest.fail("a pass in training was folded"))
    classifier(images).sum().backward()
    assert net.convolution.weight.grad is not None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_folds_its_own_weights(duplicate):
    classifier = Classifier(
        lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3)))
    )
    images, _ = given()
    classifier(images)
    with classifier.frozen():
        before = classifier.logits(images)
        other = duplicate(classifier)
    assert not vars(other._fast).get("_folded")
    other.net[0].weight.data.mul_(2)
    with other.frozen(), classifier.frozen():
        torch.testing.assert_close(other.logits(images), other.net(images).detach())
        torch.testing.assert_close(classifier.logits(images), before, rtol=0, atol=0)


def test_an_error_of_the_network_is_its_own():
    def fails(net, images):
        if net.flag:
            raise RuntimeError("its own")
        return usual(net, images)

    net = lively(Block(fails))
    images, _ = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        net.flag = True
        with pytest.raises(RuntimeError, match="its own"):
            classifier.logits(images)
        net.flag = False
        torch.testing.assert_close(classifier.logits(images), net(images).detach())
    assert classifier._fast._depth == 0
    assert not classifier._fast._folded


def test_passes_may_take_turns_in_their_order(monkeypatch):
    """As on a GPU, where gradient passes may round and others do not."""
    net, (images, labels) = lively(Block(usual)), given()
    classifier = Classifier(net)
    wanted = expected(net, images, labels)
    with classifier.frozen():
        for turn in range(4):
            monkeypatch.setattr(fast_net, "faster_last", lambda device, turn=turn: turn % 2 == 0)
            torch.testing.assert_close(classifier.score_and_gradient(images, labels), wanted)
        kept = classifier._fast._folded
        assert set(kept) == {torch.channels_last, torch.contiguous_format}
        for order, pairs in kept.items():
            assert pairs
            assert all(weight.is_contiguous(memory_format=order) for weight, *_ in pairs.values())
    assert not classifier._fast._folded


def test_a_network_that_needs_its_order_keeps_it(monkeypatch):
    net, (images, labels) = lively(Block(lambda net, x: usual(net, x.view(len(x), -1).view(x.shape)))), given()
    classifier, wanted = Classifier(net), expected(net, images, labels)
    with classifier.frozen():
        for last in (False, True, True, False):
            monkeypatch.setattr(fast_net, "faster_last", lambda device, last=last: last)
            torch.testing.assert_close(classifier.score_and_gradient(images, labels), wanted)
        assert set(classifier._fast._folded) == {torch.contiguous_format}


class Own(nn.Module):
    """A network of a test's own code, with layers to use."""

    def __init__(self, body, channels=3):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 6, 3)
        self.norm, self.linear = nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.body, self.flag = body, False

    def forward(self, images):
        return self.linear(self.body(self, images).mean((2, 3)))


def contiguous_only(net, images):
    assert images.is_contiguous()
    return usual(net, images)


def strided(net, images):
    _, channels, height, width = images.shape
    turned = torch.as_strided(images, images.shape, (channels * height * width, height * width, 1, width))
    return usual(net, turned)


def asking_quietly(net, images):
    with contextlib.suppress(Exception):
        images.stride()
    return usual(net, images)


def complex_pairs(net, images):
    made = usual(net, images)
    pairs = torch.view_as_real(torch.view_as_complex(made.unflatten(3, (-1, 2))) * 2)
    return pairs.flatten(3)


def mapped(net, images):
    return torch.vmap(lambda one: usual(net, one[None])[0])(images)


def conditional(net, images):
    return torch.cond(images.sum() > 0, lambda x: x * 2, lambda x: x * 3, (usual(net, images),))


DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # its own


OLD = pytest.mark.skipif(torch.__version__ < "2.13", reason="torch.cond fails for ever once it failed under a mode")


@DYNAMO
@pytest.mark.parametrize(
    "body",
    [contiguous_only, strided, asking_quietly, complex_pairs, mapped, pytest.param(conditional, marks=OLD)],
)
def test_code_that_no_other_order_or_watching_suits(body):
    net = lively(Own(body))
    images, labels = given()
    wanted = expected(net, images, labels)
    classifier = Classifier(net)
    for _ in range(2):
        with classifier.frozen():
            found = [classifier.score_and_gradient(images, labels) for _ in range(4)]
            for each in found:
                torch.testing.assert_close(each, wanted)
            assert torch.equal(found[2][1], found[3][1])
    assert classifier._fast._strict


def test_images_changed_in_place_are_made_anew_for_a_second_try():
    def changing(net, images):
        made = net.convolution(images.sub_(0.5).div_(0.05))
        net.kept = made.mean() if net.flag else None
        return F.relu(net.norm(made))

    net = lively(Own(changing, channels=1))
    images = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    classifier = Classifier(net)
    with classifier.frozen():
        for net.flag in (False, True):
            logits = classifier.logits(images)
            torch.testing.assert_close(logits, net(images.clone()).detach())


@pytest.mark.parametrize("what", ["shift", "weight"])
def test_weights_that_the_network_writes_itself_are_not_stale(what):
    def writing(net, images):
        with torch.no_grad():
            if what == "shift":
                net.norm.bias.copy_(images.mean((0, 2, 3)).repeat(2))
            else:
                net.convolution.weight.mul_(0).add_(images.mean())
        return usual(net, images)

    net = lively(Own(writing))
    images, _ = given()
    classifier = Classifier(net)
    with classifier.frozen():
        for scale in (1, 0.3, 0.6):
            torch.testing.assert_close(classifier.logits(images * scale), net(images * scale).detach())


def test_other_settings_of_a_normalisation_are_seen_at_once():
    net = lively(Own(usual))
    images, _ = given()
    classifier = Classifier(net)
    with classifier.frozen():
        for net.norm.eps in (1e-5, 0.1):
            torch.testing.assert_close(classifier.logits(images), net(images).detach())


def test_a_hook_between_the_two_sees_the_true_values_once():
    net = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Identity(), nn.BatchNorm2d(6), nn.Flatten(), nn.LazyLinear(4)))
    net(given()[0])
    images, seen = given()[0], []
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        handle = net[1].register_forward_hook(lambda module, taken, output: seen.append(output))
        classifier.logits(images)
        handle.remove()
        classifier.logits(images)
    (found,) = seen
    torch.testing.assert_close(found, net[0](images).detach())


@DYNAMO
def test_parts_compiled_later():
    net = lively(Own(usual))
    images, labels = given()
    wanted = expected(net, images, labels)
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.score_and_gradient(images, labels)
    net.convolution.compile(backend="eager")
    with classifier.frozen():
        for _ in range(2):
            torch.testing.assert_close(classifier.score_and_gradient(images, labels), wanted)


def test_a_frozen_script():
    net = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    images, labels = given()
    wanted = expected(net, images, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are deprecated
        classifier = Classifier(torch.jit.freeze(torch.jit.script(net)))
    for _ in range(2):
        with classifier.frozen():
            torch.testing.assert_close(classifier.score_and_gradient(images, labels), wanted)
        assert not classifier._fast.frozen


def test_a_network_in_two_classifiers_is_one_threads():
    net = lively(Block(usual)).train()
    one, two = Classifier(net), Classifier(net)
    images, _ = given()
    refused = pytest.raises(RuntimeError, match="one thread at a time for a network")
    with one.frozen(), two.frozen(), ThreadPoolExecutor(1) as pool, refused:
        pool.submit(lambda: IntegratedGradients(2)(two, images)).result()
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: IntegratedGradients(2)(two, images)).result()


def test_low_precision_is_not_folded():
    net = lively(Block(usual)).bfloat16()
    images, _ = given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
    assert folded(classifier) == 0


def test_small_passes_are_left_alone(monkeypatch):
    monkeypatch.undo()
    classifier = Classifier(lively(Block(usual)))
    images, _ = given()
    with classifier.frozen():
        classifier.logits(images)
    assert not classifier._fast._watched


def test_an_attribution_is_that_of_the_plain_network(monkeypatch):
    net = lively(models.resnet18(num_classes=4))
    images, labels = given()
    method = IntegratedGradients(steps=4)
    fast = method(Classifier(net), images, labels)
    monkeypatch.setattr(fast_net, "WORTH_IT", 10**12)
    plain = method(Classifier(net), images, labels)
    torch.testing.assert_close(fast.values, plain.values, rtol=1e-8, atol=1e-12)
