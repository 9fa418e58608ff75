"""Passes of a frozen network: its own results whatever its code does, and nothing of it changed."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustsigma import FGSM, Classifier, Gradient, IntegratedGradients, Sigma
from robustsigma.engine import network_pass as module

SIZE = 16


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(module, "_WORTH_REORDERING", 0)
    with torch.random.fork_rng(devices=[]):  # making a layer draws
        torch.manual_seed(0)
        yield


class Net(nn.Module):
    """Layers that a test's own code uses."""

    def __init__(self, body):
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.body, self.flag = body, False
        self.double().eval()

    def forward(self, images):
        return self.linear(self.body(self, images).mean((2, 3)))


def usual(net, images):
    return F.relu_(net.norm(net.convolution(images)))


def viewed(net, images):
    made = usual(net, images)
    return made.view(len(made), -1)[:, :6, None, None]


def contiguous_only(net, images):
    assert images.is_contiguous()
    return usual(net, images)


def strided(net, images):
    _, channels, height, width = images.shape
    return usual(net, torch.as_strided(images, images.shape, (channels * height * width, height * width, width, 1)))


def changing_its_input(net, images):
    return usual(net, images.sub_(0.5).div_(0.05))


def mapped(net, images):
    return torch.vmap(lambda one: usual(net, one[None])[0])(images)


BODIES = {"usual": True, "viewed": False, "contiguous_only": False, "strided": False, "changing_its_input": True}


def given():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64), torch.tensor([1, 3])


def expected(net, images, labels):
    """Return logits and gradient as the network itself gives them."""
    images = images.clone().requires_grad_(True)
    logits = net(images * 1)
    return logits.detach(), torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), images)[0]


@pytest.mark.parametrize("name", BODIES)
def test_the_networks_own_results_in_either_memory_order(name):
    """Code that cannot read channels-last memory, or would read it wrongly, gets PyTorch's default order."""
    net, (images, labels) = Net(globals()[name]), given()
    wanted, classifier = expected(net, images, labels), Classifier(net)
    for _ in range(2):
        with classifier.frozen():
            found = [classifier.score_and_gradient(images, labels) for _ in range(3)]
            torch.testing.assert_close(classifier.logits(images), wanted[0], rtol=1e-10, atol=1e-12)
        for each in found:
            torch.testing.assert_close(each, wanted, rtol=1e-9, atol=1e-12)
            assert each[1].is_contiguous()
            assert torch.equal(each[1], found[0][1])  # the first pass has the bits of later ones
    assert classifier._pass.channels_last is BODIES[name]


def test_a_later_way_through_the_network_that_cannot_read_channels_last():
    def branching(net, images):
        return viewed(net, images) if net.flag else usual(net, images)

    net, (images, labels) = Net(branching), given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        assert classifier._pass.channels_last
        net.flag = True
        torch.testing.assert_close(classifier.score_and_gradient(images, labels), expected(net, images, labels))


def test_an_error_of_the_network_is_its_own():
    def fails(net, images):
        if net.flag:
            raise RuntimeError("its own")
        return usual(net, images)

    net, (images, _) = Net(fails), given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        net.flag = True
        with pytest.raises(RuntimeError, match="its own"):
            classifier.logits(images)
    assert classifier._depth == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.jit's, torch.compile's
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("compiled", ["script", "compile"])
def test_compiled_networks_keep_their_order(compiled):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    images, labels = given()
    wanted = expected(net, images, labels)
    if compiled == "script":
        net = torch.jit.freeze(torch.jit.script(net))
    else:
        net[0].compile(backend="eager")
    classifier = Classifier(net)
    with classifier.frozen():
        torch.testing.assert_close(classifier.score_and_gradient(images, labels), wanted)
    assert classifier._pass.channels_last is False


@pytest.mark.parametrize("change", ["copy", "assign", "statistics", "replaced"])
def test_changed_weights_are_seen_in_the_next_pass(change):
    net, (images, labels) = Net(usual), given()
    classifier = Classifier(net)
    with classifier.frozen():
        classifier.logits(images)
        with torch.no_grad():
            if change == "copy":
                net.convolution.weight.mul_(2)
            elif change == "statistics":
                net.norm.running_mean.add_(1)
            elif change == "assign":
                net.load_state_dict({k: v * 1.5 for k, v in net.state_dict().items()}, assign=True)
            else:
                net.norm = nn.GroupNorm(2, 6).double()
        torch.testing.assert_close(classifier.score_and_gradient(images, labels), expected(net, images, labels))


@pytest.mark.parametrize("same", [True, False])
def test_a_second_thread_is_refused_and_changes_nothing(same):
    net = Net(usual).train()
    one = Classifier(net)
    two = one if same else Classifier(net)
    images, _ = given()
    with one.frozen(), ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="from one thread at a time for a network"):
            pool.submit(lambda: IntegratedGradients(2)(two, images)).result()
        assert not net.training
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: IntegratedGradients(2)(two, images)).result()


# Nothing of a method's passes stays in the network.


class Tabled(nn.Module):
    """Keeps a table from its first pass, as rotary positions, grids and attention masks of windows are kept."""

    def __init__(self, from_weights=False):
        super().__init__()
        self.linear, self.scale = nn.Linear(3 * SIZE * SIZE, 4), nn.Parameter(torch.ones(()))
        self.table, self.from_weights = None, from_weights

    def forward(self, images):
        if self.table is None or self.table.shape[-1] != images.shape[-1]:
            self.table = torch.linspace(0.5, 1.5, images.shape[-1], dtype=images.dtype) + 0 * images.detach().mean()
            self.table = self.table * self.scale.detach() if self.from_weights else self.table
        return self.linear((images * self.table * self.scale).flatten(1))


@pytest.mark.parametrize("from_weights", [False, True])
@pytest.mark.parametrize("method", [Gradient(), IntegratedGradients(2), Sigma(max_steps=2), FGSM(0.1)], ids=repr)
def test_a_table_from_the_first_pass_can_be_used_in_later_gradients(method, from_weights):
    net, (images, labels) = Tabled(from_weights), given()
    method(Classifier(net), images.float(), labels, seed=0)
    method(Classifier(net), images.float(), labels, seed=0)
    net(images.float()).sum().backward()  # the user's own step
    assert net.scale.grad.isfinite()


def test_a_classifier_that_is_built_in_inference_mode_is_usable():
    net, (images, labels) = Net(usual), given()
    with torch.inference_mode():
        classifier = Classifier(net, mean=(0.5,), std=(0.5,))
        inside = Gradient()(classifier, images, labels).values
    torch.testing.assert_close(Gradient()(classifier, images, labels).values, inside)
    classifier(images.requires_grad_(True)).sum().backward()
    assert images.grad.any()


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        net = copy.deepcopy(Net(usual))
    with pytest.raises(
        ValueError, match=r"net: expected weights that can take part in gradients, got .*inference mode"
    ):
        Classifier(net)


def test_statistics_that_are_loaded_in_inference_mode_are_usable():
    classifier, (images, labels) = Classifier(Net(usual), mean=(0.5,), std=(0.5,)), given()
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    with torch.inference_mode():
        classifier.load_state_dict(state)
    assert Gradient()(classifier, images, labels).values.any()


def test_a_network_with_one_mode_is_usable():
    class Exported(nn.Sequential):
        def train(self, mode=True):
            raise NotImplementedError("Calling train() is not supported yet.")

    net = Exported(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4).double())
    assert Gradient()(Classifier(net), *given()).values.any()
    assert net.training


def test_weights_without_numbers_are_refused():
    with torch.device("meta"):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match="net: expected weights with numbers, got the meta device"):
        Gradient()(Classifier(net), torch.rand(2, 3, 2, 2))


class Adapter(nn.Module):
    """Merges its change of a weight when it is set to eval mode, as LoRA layers do."""

    def __init__(self):
        super().__init__()
        self.base, self.change, self.merged = nn.Linear(3 * SIZE * SIZE, 4), nn.Parameter(torch.rand(4, 1)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.base.weight.data += self.change * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, flat):
        return self.base(flat) + (0 if self.merged else self.change.T * flat.sum(1, keepdim=True))


@pytest.mark.parametrize("mode", [True, False])
def test_modules_are_switched_by_their_own_train(mode):
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), Adapter()).double()
    net.train(mode)
    classifier, (images, _) = Classifier(net), given()
    weights = net[2].base.weight.detach().clone()
    with classifier.frozen():
        assert net[2].merged
        frozen = classifier.logits(images)
    assert (net.training, net[1].training, net[2].training, net[2].merged) == (mode, mode, mode, not mode)
    torch.testing.assert_close(net[2].base.weight.detach(), weights)
    torch.testing.assert_close(frozen, net.eval()(images).detach())


class AlwaysFrozen(nn.Sequential):
    """Its BatchNorm never uses batch statistics, whatever mode it is set to."""

    def train(self, mode=True):
        super().train(mode)
        for each in self:
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
        return self


def test_modes_that_a_user_set_come_back():
    body = AlwaysFrozen(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    net = nn.Sequential(body, nn.Dropout(0.1), nn.Dropout(0.1), nn.Flatten(), nn.LazyLinear(3)).double().train()
    net(given()[0])
    net[1].eval()  # deliberately
    body[0].training = False  # behind its `train`
    modes = [each.training for each in net.modules()]
    with Classifier(net).frozen():
        assert not any(each.training for each in net.modules())
    assert [each.training for each in net.modules()] == modes


def test_a_module_that_wraps_itself_is_named():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.classifier = Classifier(self)

    mine = Mine()
    for call in (mine.train, mine.double, mine.state_dict, lambda: Gradient()(mine.classifier, given()[0])):
        with pytest.raises(ValueError, match=r"net: .*got Mine; wrap the network inside it.*Classifier\(self.net\)"):
            call()


# Dtypes.


class Tower(nn.Module):
    """Parameters of two dtypes, as CLIP's image tower is converted: its own in one, its layers in another."""

    def __init__(self, own, layers):
        super().__init__()
        self.own = nn.Parameter(torch.zeros((), dtype=own))
        self.convolution, self.linear = nn.Conv2d(3, 4, 3, dtype=layers), nn.Linear(4, 3, dtype=layers)

    def forward(self, images):
        made = self.convolution(images).mean((2, 3))
        return self.linear(made + self.own.to(made.dtype))


@pytest.mark.parametrize("layers", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
def test_images_get_the_dtype_that_the_network_reads(own, layers):
    images = given()[0].float()
    net = Tower(own, layers)
    classifier = Classifier(net)
    torch.testing.assert_close(classifier(images), net(images.to(layers)))
    assert Gradient()(classifier, images).values.any()
    assert Classifier(net, dtype=layers)(images).dtype == layers


def test_dtypes_that_no_images_fit_are_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3).half(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"net: .*torch.float16, torch.float32.*Classifier\(dtype=...\)"):
        Classifier(net)(given()[0])


# Networks whose results should not be believed.


class Noisy(nn.Module):
    def forward(self, images):
        return F.dropout(images.flatten(1)[:, :64], 0.5).unflatten(1, (4, 16)).sum(2)


class Alone(nn.Module):
    """Adds the batch's mean, by another operation than BatchNorm."""

    def forward(self, images):
        flat = images.flatten(1)[:, :4]
        return flat + flat.mean(0)


class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 4).double()

    @torch.no_grad()
    def forward(self, images):
        return self.linear(images.flatten(1))


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecation
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


class First(nn.Module):
    """Adds to each image's logits those of the first."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * SIZE * SIZE, 4).double()

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + 0.3 * logits[:1]


UNSOUND = {
    "first image": (First, "depend on the other images of its batch"),
    "statistics of one value": (
        lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 4)
        ).double(),
        "depend on the other images of its batch",
    ),
    "dropout": (Noisy, "Two equal passes give different logits"),
    "batch mean": (Alone, "depend on the other images of its batch"),
    "batch statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).double(),
        "depend on the other images of its batch",
    ),
    "no_grad": (NoGradient, "gradients are zero"),
    "int8": (quantized, "gradients are zero"),
    "probabilities": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4).double(), nn.Softmax(1)), "probabilities"),
}


@pytest.mark.filterwarnings("ignore:quantized..linear_dynamic")  # PyTorch's own
@pytest.mark.filterwarnings("ignore:net. An image's logits depend")  # also of int8 networks, scaled by the batch
@pytest.mark.unsound_networks
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", [Gradient(), FGSM(0.1)], ids=repr)
@pytest.mark.parametrize("name", UNSOUND)
def test_a_network_that_should_not_be_believed_is_named_once(name, method, count):
    if name == "statistics of one value" and count == 1:
        pytest.skip("it takes no batch of one")
    make, message = UNSOUND[name]
    net, (images, labels) = make(), given()
    images = images.float() if name == "int8" else images
    if name == "probabilities":
        net(images)
    classifier = Classifier(net)
    with pytest.warns(UserWarning, match=f"net: .*{message}") as seen:
        method(classifier, images[:count], labels[:count], seed=0)
    assert {each.filename for each in seen if "net:" in str(each.message)} == {__file__}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="net:")
        method(classifier, images[:count], labels[:count], seed=0)


@pytest.mark.unsound_networks
@pytest.mark.parametrize(
    "make", [lambda: Net(usual), lambda: Net(usual).train(), lambda: Tower(torch.float32, torch.half)]
)
def test_a_sound_network_is_not_warned_of(make):
    images, labels = given()
    Gradient()(Classifier(make()), images, labels % 3)


# Compiled passes.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, in compiling
def test_compiled_passes_give_the_networks_own_results():
    net, (images, _) = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4), nn.Tanh()), given()
    images, labels = images.float().repeat(3, 1, 1, 1)[:5], torch.arange(5) % 4
    plain, compiled = Classifier(net), Classifier(net, compile=True)
    for change in (1, 1.5):  # as between the steps of a training
        net[1].weight.data.mul_(change)
        for count in (5, 3):  # one is padded to 8, the other to 4
            with plain.frozen(), compiled.frozen():
                wanted = plain.score_and_gradient(images[:count], labels[:count])
                found = compiled.score_and_gradient(images[:count], labels[:count])
                torch.testing.assert_close(compiled.logits(images[:count]), wanted[0], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert compiled.compile_passes
    method, seeds = Sigma(max_steps=3), torch.arange(5)
    found, wanted = (method(each, images, labels, seed=seeds) for each in (compiled, plain))
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-3, atol=1e-5)
    other = copy.deepcopy(compiled)
    other.net[1].weight.data.zero_()
    with other.frozen(), compiled.frozen():
        assert not torch.equal(other.logits(images), compiled.logits(images))


def test_a_network_that_does_not_compile_runs_as_it_is(monkeypatch):
    def broken(*args, **kwargs):
        def run(images):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    net, (images, labels) = Net(usual), given()
    classifier = Classifier(net, compile=True)
    with classifier.frozen():
        with pytest.warns(UserWarning, match="compile: the network does not compile.*no compiler"):
            found = classifier.score_and_gradient(images, labels)
        torch.testing.assert_close(found, expected(net, images, labels))
        torch.testing.assert_close(classifier.logits(images), net(images).detach())
