"""What holds for every method of the public list: a new one is put to all of this by being listed."""

import copy
import importlib
import inspect
import pickle
import pkgutil
from contextlib import nullcontext, suppress
from dataclasses import fields, is_dataclass, replace

import cases
import jsonargparse
import pytest
import torch
from settings import (
    CHEAP_ATTRIBUTORS,
    DEFAULT_SHAPE,
    Centered,
    Flat,
    Scaled,
    cheap,
    entry_of,
    every_kind,
    nets_of,
    network,
    smooth_net,
    traits_of,
)
from torch import nn
from torch.nn import functional as F
from vit import TinyViT

import robustsigma
import robustsigma.engine.attributors as public
import robustsigma.engine.attributors.published as published
from robustsigma import (
    IDG,
    Attribution,
    Attributor,
    Classifier,
    Gradient,
    IntegratedGradients,
    LeftIntegratedGradients,
)
from robustsigma.engine import noise

CLASSES = cases.CLASSES
ROWS = [(kind, place) for kind in every_kind() for place in range(len(entry_of(kind).settings))]
ON_NETS = [(kind, place, net) for kind, place in ROWS for net in nets_of(kind)]


def _name(value):
    return value.__name__ if isinstance(value, type) else str(value)


def rows(*, having=lambda traits: True, nets=False, first=False):
    """Parametrize over (kind, place of its settings[, network]) of the methods with a trait.

    `first` takes the first settings alone, where all settings of a method share the code under test.
    """
    chosen = [
        row for row in (ON_NETS if nets else ROWS) if having(entry_of(row[0]).traits) and row[1] < (1 if first else 9)
    ]
    names = "kind, place, net" if nets else "kind, place"
    return pytest.mark.parametrize(names, chosen, ids=["-".join(map(_name, row)) for row in chosen])


def setting(kind, place, shape=DEFAULT_SHAPE):
    return cheap(kind, shape)[place]


def batch(count, shape, dtype=torch.float32):
    """Return images (count, C, H, W), cut from larger ones."""
    return cases.images(count, channels=shape[0], size=max(shape[1:]), dtype=dtype)[:, :, : shape[1], : shape[2]]


def classifier(net, **kwargs):
    """Return a classifier whose normalization fits images of any number of channels."""
    return Classifier(net, **{"mean": (0.4,), "std": (0.6,), **kwargs})


def check(result: Attribution, x, target=None):
    """Check what the docstring of `Attribution` says."""
    count, device = len(x), x.device
    assert result.values.shape == result.endpoint.shape == x.shape
    for name in ("values", "endpoint", "drop", "confidence"):
        value = getattr(result, name)
        assert (value.dtype, value.device) == (x.dtype, device), name
        assert not value.requires_grad, name
        assert not value.is_inference(), name
    assert torch.isfinite(result.values).all()
    assert torch.isfinite(result.drop).all()
    assert torch.isfinite(result.endpoint).all()
    assert result.endpoint.min() >= 0
    assert result.endpoint.max() <= 1
    paths = result.steps.shape[1]
    assert result.drop.shape == (count,)
    assert result.steps.shape == result.converged.shape == (count, paths)
    assert result.confidence.shape[:2] == (count, paths)
    assert result.steps.dtype == result.forwards.dtype == result.backwards.dtype == result.target.dtype == torch.int64
    assert result.converged.dtype == torch.bool
    assert result.forwards.shape == result.backwards.shape == result.target.shape == (count,)
    assert (result.forwards >= 1).all()
    assert (2 * result.forwards >= result.backwards).all()
    known = ~torch.isnan(result.confidence)
    assert torch.isfinite(result.confidence[known]).all()
    assert not (known[..., 1:] & ~known[..., :-1]).any()  # a curve has no holes
    if result.stderr is not None:
        assert result.stderr.shape == (count, *x.shape[2:])
        assert torch.isfinite(result.stderr).all()
        assert (result.stderr >= 0).all()
    if result.endpoints is not None:
        assert result.endpoints.shape == (count, paths, *x.shape[1:])
        assert ((result.endpoints >= 0) & (result.endpoints <= 1)).all()
    if target is not None:
        assert torch.equal(result.target, target)
    assert torch.isfinite(result.gap()).all()


def same(first, second, **tolerance):
    """Check that two results are equal: bit for bit, or within a tolerance."""
    for item in fields(Attribution):
        a, b = getattr(first, item.name), getattr(second, item.name)
        if a is None or b is None:
            assert a is None, item.name
            assert b is None, item.name
            continue
        exact = {"rtol": 0, "atol": 0} if not tolerance or not a.is_floating_point() else tolerance
        torch.testing.assert_close(a, b, equal_nan=True, msg=lambda text, name=item.name: f"{name}: {text}", **exact)


@rows(nets=True)
def test_shapes(kind, place, net):
    """1 or 5 images, 1, 3 or 4 channels, height and width that differ, a single pixel, two classes."""
    shapes = [(1, (1, 8, 8)), (5, (3, 4, 16)), (1, (4, 4, 16)), (5, (1, 1, 1)), (1, (3, 1, 1))]
    for count, shape in shapes:
        x, labels = batch(count, shape), cases.labels(count)
        check(setting(kind, place, shape)(classifier(network(net, shape)), x, labels, seed=3), x, labels)
    x = cases.images(2)
    check(setting(kind, place)(classifier(network(net, classes=2)), x), x)


@rows()
def test_double_precision(kind, place):
    """The result has the dtype of the images, whatever that of the network is."""
    net = network(smooth_net(kind))
    for x, of in ((cases.images(2, dtype=torch.float64), net.double()), (cases.images(2), net.double())):
        check(setting(kind, place)(classifier(of), x), x)
    x = cases.images(2, dtype=torch.float64)
    check(setting(kind, place)(classifier(net.float()), x), x)


@rows(first=True)
def test_half_precision_images_are_promoted(kind, place):
    clf = classifier(network(smooth_net(kind)))
    for dtype in (torch.float16, torch.bfloat16):
        x = cases.images(2).to(dtype)
        same(setting(kind, place)(clf, x), setting(kind, place)(clf, x.float()))


@rows(nets=True, first=True)
def test_channels_last(kind, place, net):
    clf, x = classifier(network(net).double()), cases.images(dtype=torch.float64)
    plain = setting(kind, place)(clf, x)
    last = setting(kind, place)(clf, x.contiguous(memory_format=torch.channels_last))
    same(last, plain, rtol=1e-7, atol=1e-9)


def _lost(result):
    return (result.gap() / (1 + result.drop.abs())).max().item()


@rows(having=lambda traits: traits.gap is not None)
def test_completeness(kind, place):
    clf, x = cases.classifier(cases.mlp().double()), cases.images(dtype=torch.float64)
    method, traits = setting(kind, place), entry_of(kind).traits
    seeds = torch.zeros(len(x), dtype=torch.int64)  # that do not draw AGI's coarsest paths
    result = method(clf, x, seed=seeds)
    assert result.drop.abs().max() > 0.05  # else there is nothing to be complete about
    assert _lost(result) <= traits.gap
    if traits.finer is not None:
        assert _lost(replace(method, **traits.finer)(clf, x, seed=seeds)) <= _lost(result) / 2


@rows(having=lambda traits: traits.linear_gap is not None)
def test_completeness_on_a_linear_net(kind, place):
    clf = classifier(cases.linear(gain=1.0).double())
    result = setting(kind, place)(clf, cases.images(dtype=torch.float64))
    assert result.drop.abs().max() > 1e-3
    assert _lost(result) <= entry_of(kind).traits.linear_gap


class LinearAgain(nn.Module):
    """`cases.linear` written as a convolution over the whole image, in two halves."""

    def __init__(self, net):
        super().__init__()
        self.weight = nn.Parameter(net[1].weight.detach().reshape(CLASSES, *DEFAULT_SHAPE) / 2)
        self.last = nn.utils.skip_init(nn.Linear, CLASSES, CLASSES)
        self.last.weight.data = torch.eye(CLASSES)
        self.last.bias.data = net[1].bias.detach().clone()

    def forward(self, x):
        return self.last((F.conv2d(x, self.weight) + F.conv2d(x.flip(3), self.weight.flip(3)))[:, :, 0, 0])


class SmoothAgain(nn.Module):
    """`cases.mlp` with tanh(x) = 2 / (1 + exp(-2x)) - 1, its hidden units in another order."""

    def __init__(self, net):
        super().__init__()
        self.first, self.last = copy.deepcopy(net[1]), copy.deepcopy(net[3])
        self.first.weight.data, self.first.bias.data = self.first.weight.data.flip(0), self.first.bias.data.flip(0)
        self.last.weight.data = self.last.weight.data.flip(1)

    def forward(self, x):
        return self.last(2 * torch.sigmoid(2 * self.first(x.flatten(1))) - 1)


class RolledAgain(TinyViT):
    """A transformer whose heads are in another order."""

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            width = 4
            order = torch.cat([torch.arange(width, 2 * width), torch.arange(width)])
            in_order = torch.cat([order + 8 * part for part in range(3)])
            block.attn.qkv.weight.data = block.attn.qkv.weight.data[in_order]
            block.attn.qkv.bias.data = block.attn.qkv.bias.data[in_order]
            block.attn.proj.weight.data = block.attn.proj.weight.data[:, order]


@rows()
def test_implementation_invariance(kind, place):
    """Equal functions, equal attributions."""
    x = cases.images(dtype=torch.float64)
    if entry_of(kind).traits.network == "transformer":
        pairs = [(TinyViT(), RolledAgain())]
    else:
        pairs = [(cases.mlp(), SmoothAgain(cases.mlp()))]
        if entry_of(kind).traits.invariant_to_layers:
            pairs.append((cases.linear(gain=1.0), LinearAgain(cases.linear(gain=1.0))))
    for one, other in pairs:
        results = []
        for net in (one.double().eval(), other.double().eval()):
            results.append(setting(kind, place)(classifier(net), x, cases.labels(), seed=cases.seeds()))
        torch.testing.assert_close(one(x), other(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(results[0].values, results[1].values, rtol=1e-6, atol=1e-8)


@rows(having=lambda traits: traits.line)
def test_sensitivity_a(kind, place):
    """Where image and baseline differ in one pixel and in the score, that pixel gets all, and not nothing."""
    x = torch.zeros(2, *DEFAULT_SHAPE, dtype=torch.float64)
    x[0, 1, 2, 3], x[1, 0, 7, 0] = 0.9, 0.6
    clf = classifier(cases.mlp().double())
    with clf.frozen():
        rises = clf.logits(x) - clf.logits(torch.zeros_like(x))
    result = setting(kind, place)(clf, x, rises.argmax(1))
    assert torch.equal(result.values != 0, x != 0)


class Blind(nn.Module):
    """A network that does not see the upper half of the image."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.cat([torch.full_like(x[:, :, :4], 0.3), x[:, :, 4:]], 2))


@rows(having=lambda traits: traits.dummy, nets=True)
def test_sensitivity_b(kind, place, net):
    """Pixels that the network ignores get nothing; others get something."""
    result = setting(kind, place)(classifier(Blind(network(net))), cases.images(), cases.labels())
    assert not result.values[:, :, :4].any()
    assert result.values[:, :, 4:].any()


def _degenerate(kind):
    base = lambda: network(smooth_net(kind))  # noqa: E731
    nets = {"zero gradient": Flat(base()), "saturated": Scaled(base(), 1e4), "tiny": Scaled(base(), 1e-30)}
    if smooth_net(kind) == "mlp":
        nets["constant"] = cases.constant()
        nets["linear saturated"] = cases.saturated()
        nets["linear zero"] = nn.Sequential(*cases.linear())
        nets["linear zero"][1].weight.data.zero_()
    return nets


@rows()
def test_degenerate_networks_and_images(kind, place):
    """Constant, flat and saturated networks, constant images, an image that is the baseline: finite numbers."""
    x = torch.cat([cases.images(1), *(torch.full((1, *DEFAULT_SHAPE), value) for value in (0.0, 0.5, 1.0))])
    for name, net in {**_degenerate(kind), "plain": network(smooth_net(kind))}.items():
        if name == "constant" and not entry_of(kind).traits.any_module:
            continue
        result = setting(kind, place)(classifier(net), x, cases.labels())
        check(result, x)
        if name in ("zero gradient", "constant", "linear zero") and entry_of(kind).traits.dummy:
            assert not result.values.any(), name


@rows(nets=True)
def test_a_batch_is_its_singles(kind, place, net):
    clf, x = classifier(network(net).double()), cases.images(dtype=torch.float64)
    labels, seeds, method = cases.labels(), cases.seeds(), setting(kind, place)
    whole = method(clf, x, labels, seed=seeds)
    for i in range(len(x)):
        one = method(clf, x[i : i + 1], labels[i : i + 1], seed=seeds[i : i + 1])
        passes = () if traits_of(method).shared_passes else ("forwards", "backwards")
        for name in ("values", "endpoint", "drop", "stderr", "target", *passes):
            got, expected = getattr(one, name), getattr(whole, name)
            if expected is not None:
                torch.testing.assert_close(got[0], expected[i], rtol=1e-7, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")
        paths = one.steps.shape[1]
        assert torch.equal(one.steps[0], whole.steps[i, :paths])
        assert torch.equal(one.converged[0], whole.converged[i, :paths])


@rows(nets=True)
def test_chunks_do_not_matter(kind, place, net):
    x, method = cases.images(3, dtype=torch.float64), setting(kind, place)
    counter = cases.PassCounter(network(net).double())
    whole = method(classifier(counter), x, seed=cases.seeds(3))
    for chunk_size in (1, 2):
        counter.reset()
        parts = method(classifier(counter, chunk_size=chunk_size), x, seed=cases.seeds(3))
        assert counter.largest <= chunk_size
        same(parts, whole, rtol=1e-7, atol=1e-9)


@rows(nets=True)
def test_seeds(kind, place, net):
    clf, x, method = classifier(network(net)), cases.images(), setting(kind, place)
    first = method(clf, x, seed=5)
    same(method(clf, x, seed=5), first)
    same(method(clf, x, seed=noise.seeds(5, x)), first)
    others = [method(clf, x, seed=seed).values for seed in (6, 7, 8)]  # a choice among two classes may repeat
    traits = traits_of(method)
    draws = traits.draws if isinstance(traits.draws, bool) else place in traits.draws
    assert method.stochastic == draws
    expected = draws and (net != "linear" or traits.linear_draws)
    assert any(not torch.equal(values, first.values) for values in others) == expected


@rows(having=lambda traits: traits.draws is True)
def test_an_int_seed_gives_an_image_the_same_draws_in_any_batch(kind, place):
    clf, x, method = (
        classifier(network(smooth_net(kind)).double()),
        cases.images(dtype=torch.float64),
        setting(kind, place),
    )
    whole = method(clf, x, cases.labels(), seed=5)
    for row in (0, 3):
        alone = method(clf, x[row : row + 1], cases.labels()[row : row + 1], seed=5)
        assert torch.allclose(alone.values[0], whole.values[row], rtol=1e-7, atol=1e-9)
    shared = method(clf, x, cases.labels(), seed=torch.full((4,), 5))
    assert not torch.allclose(shared.values, whole.values)


def test_the_global_generators_do_not_matter():
    """The fixture in conftest.py watches that no test writes them; here they are changed between two calls."""
    x = cases.images(2)
    with torch.random.fork_rng(devices=[]):
        for kind, place in ROWS:
            clf, results = classifier(network(smooth_net(kind))), []
            for state in (1, 2):
                torch.default_generator.manual_seed(state)
                results.append(setting(kind, place)(clf, x, seed=9))
            same(*results)


@rows(nets=True, first=True)
def test_no_side_effects(kind, place, net):
    clf = classifier(network(net))
    clf.net.requires_grad_(True)
    next(clf.net.parameters()).requires_grad_(False)
    for parameter in clf.net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before = cases.state_of(clf)
    x, labels, seeds = cases.images().requires_grad_(True), cases.labels(), cases.seeds()
    result = setting(kind, place)(clf, x, labels, seed=seeds)
    assert cases.state_of(clf) == before
    assert torch.equal(x, cases.images())
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(labels, cases.labels())
    assert torch.equal(seeds, cases.seeds())
    taken = {tensor.untyped_storage().data_ptr() for tensor in (x, labels, seeds)}
    for item in fields(Attribution):
        value = getattr(result, item.name)
        if value is not None:
            assert value.untyped_storage().data_ptr() not in taken, f"{item.name} is the caller's own memory"


@rows(nets=True, first=True)
def test_no_side_effects_when_the_net_raises_midway(kind, place, net):
    x = cases.images(2)
    for after in (0, 1, 2, 5):
        clf = classifier(cases.Raising(network(net), after))
        before = cases.state_of(clf)
        with suppress(RuntimeError) if after else pytest.raises(RuntimeError, match="midway"):
            setting(kind, place)(clf, x)
        assert cases.state_of(clf) == before
        assert torch.equal(x, cases.images(2))


@rows(nets=True, first=True)
def test_contexts_of_the_caller(kind, place, net):
    """Mode, gradient mode and autocast of the caller change no bit."""
    x, method, inner = cases.images(), setting(kind, place), network(net)
    clf = classifier(inner)
    expected = method(clf, x, seed=2)
    contexts = [
        (torch.no_grad, True),
        (torch.inference_mode, True),
        (lambda: torch.autocast("cpu", torch.bfloat16), False),
        (nullcontext, False),
    ]
    for context, mode in contexts:
        inner.train(mode)
        with context():
            given = x.clone()  # inside inference mode, an inference tensor
            result = method(clf, given, seed=2)
        assert not result.values.is_inference()
        same(result, expected)


@rows()
def test_targets(kind, place):
    x, method = cases.images(), setting(kind, place)
    clf = Classifier(Centered(network(smooth_net(kind)), x))
    every = method(clf, x, torch.full((4,), 2))
    same(method(clf, x, 2), every)
    same(method(clf, x, torch.tensor(2)), every)
    same(method(clf, x, torch.full((4,), 2, dtype=torch.int32)), every)
    same(method(clf, x, [2, 2, 2, 2]), every)
    predicted = method(clf, x)
    with clf.frozen():
        answer = clf.logits(x).argmax(1)
    assert torch.equal(predicted.target, answer)
    same(predicted, method(clf, x, answer))
    assert len(set(answer.tolist())) > 1  # else a single target would do for all images
    if traits_of(method).targeted:
        other = method(clf, x, (answer + 1) % 3)
        assert (other.values != predicted.values).flatten(1).any(1).all()


_X = cases.images()
BAD = {
    "images: a list": ({"images": [[1.0]]}, "images"),
    "images: no batch": ({"images": _X[0]}, "images"),
    "images: empty": ({"images": _X[:0]}, "images"),
    "images: integers": ({"images": (_X * 255).to(torch.uint8)}, "images"),
    "images: above 1": ({"images": _X * 255}, "images"),
    "images: below 0": ({"images": _X - 0.5}, "images"),
    "images: NaN": ({"images": _X.clone().index_fill_(0, torch.tensor([1]), torch.nan)}, "images"),
    "images: infinite": ({"images": _X.clone().index_fill_(0, torch.tensor([1]), torch.inf)}, "images"),
    "target: too large": ({"target": 3}, "target"),
    "target: negative": ({"target": -1}, "target"),
    "target: one of four out of range": ({"target": torch.tensor([0, 1, 2, 3])}, "target"),
    "target: too few": ({"target": torch.tensor([0, 1])}, "target"),
    "target: two axes": ({"target": torch.zeros(4, 1, dtype=torch.int64)}, "target"),
    "target: floats": ({"target": torch.zeros(4)}, "target"),
    "target: bool": ({"target": True}, "target"),
    "seed: float": ({"seed": 0.5}, "seed"),
    "seed: None": ({"seed": None}, "seed"),
    "seed: bool": ({"seed": True}, "seed"),
    "seed: 64 bits": ({"seed": 2**63}, "seed"),
    "seed: too few": ({"seed": torch.tensor([1, 2])}, "seed"),
    "seed: int32": ({"seed": torch.zeros(4, dtype=torch.int32)}, "seed"),
}


@pytest.mark.parametrize("kind", every_kind(), ids=_name)
def test_bad_arguments(kind):
    net = cases.PassCounter(network(smooth_net(kind)))
    clf, method = classifier(net), cheap(kind)[0]
    for arguments, name in BAD.values():
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            method(clf, **{"images": _X, "target": 0, "seed": 0, **arguments})
    assert net.backwards == 0


class Wrong(Attributor):
    """Gives what a test says."""

    def __init__(self, **changes):
        self.changes = changes

    def attribute(self, classifier, images, target, logits, seeds):
        return replace(Gradient().attribute(classifier, images, target, logits, seeds), **self.changes)


@pytest.mark.parametrize("values", [_X[:, 0], _X[:2], None])
def test_values_of_another_shape_name_the_method(values):
    with pytest.raises(ValueError, match=r"^Wrong\.attribute: expected values of shape \(4, 3, 8, 8\), got "):
        Wrong(values=values)(cases.classifier(), _X)


def test_a_drop_that_is_not_finite_is_an_error():
    drop = torch.tensor([0.0, torch.nan, 0.0, torch.inf])
    with pytest.raises(ValueError, match=r"^net: expected finite gradients or scores for images \[1, 3\], got NaN"):
        Wrong(drop=drop)(cases.classifier(), _X)


class Standardized(nn.Module):
    """Divides each image by its spread, which a black baseline has not."""

    def __init__(self):
        super().__init__()
        self.net = cases.mlp()

    def forward(self, x):
        return self.net((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("method", [IntegratedGradients(4), IDG(4), LeftIntegratedGradients(4)])
def test_a_baseline_without_a_score_is_an_error(method):
    with pytest.raises(ValueError, match=r"^net: expected finite"):
        method(Classifier(Standardized()), _X, 0)


@pytest.mark.parametrize("kind", every_kind(), ids=_name)
def test_networks_that_return_no_logits(kind):
    for bad in (lambda z: z[:, :1], lambda z: z[:, :, None], lambda z: z.sum()):
        net = cases.PassCounter(network(smooth_net(kind)))
        net.register_forward_hook(lambda module, args, output, bad=bad: bad(output))
        with pytest.raises(ValueError, match=r"^net: expected logits"):
            cheap(kind)[0](classifier(net), _X)


@rows(nets=True)
def test_passes_are_those_counted(kind, place, net):
    counter = cases.PassCounter(network(net))
    result = setting(kind, place)(classifier(counter), cases.images(5), seed=cases.seeds(5))
    assert counter.forwards == result.forwards.sum()
    assert counter.backwards == result.backwards.sum()


@pytest.mark.parametrize("kind", every_kind(), ids=_name)
def test_objects(kind):
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    clf, x = classifier(network(smooth_net(kind))), cases.images(2)
    for method in CHEAP_ATTRIBUTORS[kind]:
        expected = method(clf, x, 1)
        for again in (pickle.loads(pickle.dumps(method)), copy.deepcopy(method), replace(method)):
            same(again(clf, x, 1), expected)
            if plain(method):
                assert again == method
                assert hash(again) == hash(method)
        if plain(method):
            assert eval(repr(method), vars(public)) == method


def plain(method):
    """Return whether every setting is a number, a string or none: no tensors, functions or modules."""
    simple = (int, float, str, type(None), tuple)
    return all(isinstance(getattr(method, item.name), simple) for item in fields(method))


@pytest.mark.parametrize("kind", every_kind(), ids=_name)
def test_yaml_round_trip(kind):
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--m", type=Attributor)
    for method in CHEAP_ATTRIBUTORS[kind]:
        if not plain(method):
            continue
        settings = {item.name: getattr(method, item.name) for item in fields(method) if item.init}
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
        config = parser.parse_object({"m": {"class_path": kind.__name__, "init_args": settings}})
        again = parser.parse_string(parser.dump(config))
        assert parser.instantiate(again).m == method


def _subclasses(kind):
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_method_of_the_package_is_listed():
    for module in pkgutil.walk_packages(public.__path__, public.__name__ + "."):
        importlib.import_module(module.name)
    ours = {kind for kind in _subclasses(Attributor) if kind.__module__.startswith("robustsigma.engine.")}
    theirs = {kind for kind in ours if kind.__module__.startswith(published.__name__)}
    concrete = {kind.__name__ for kind in ours - theirs if not inspect.isabstract(kind)}
    assert concrete == {kind.__name__ for kind in every_kind()}
    assert concrete <= set(robustsigma.__all__)
    assert {kind.__name__ for kind in theirs} == set(published.__all__)
    assert len(set(public.__all__)) == len(public.__all__)


def test_every_method_has_cheap_settings_and_declared_traits():
    from settings import _TABLE

    assert {kind.__name__ for kind in every_kind()} == set(_TABLE)


@pytest.mark.gpu
@rows(nets=True)
def test_devices_agree(kind, place, net):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    method, inner, x = setting(kind, place), network(net).double(), cases.images(dtype=torch.float64)
    here = method(classifier(inner), x, cases.labels(), seed=cases.seeds())
    there = method(classifier(inner).cuda(), x.cuda(), cases.labels(), seed=cases.seeds())
    torch.testing.assert_close(there.values.cpu(), here.values, rtol=1e-6, atol=1e-8)
    assert torch.equal(there.steps.cpu(), here.steps)


def test_pairs_and_classes_may_be_lists():
    assert robustsigma.Sigma(adaptive=[0.01, 0.1]) == robustsigma.Sigma(adaptive=(0.01, 0.1))
    assert robustsigma.AGI(classes=[0, 2]) == robustsigma.AGI(classes=(0, 2))


@pytest.mark.parametrize("reduction", ["abs_sum", "sum_abs", "sum", "mean"])
def test_reductions(reduction):
    result = robustsigma.Gradient()(cases.classifier(), _X, 0)
    expected = {
        "abs_sum": result.values.abs().sum(1),
        "sum_abs": result.values.sum(1).abs(),
        "sum": result.values.sum(1),
        "mean": result.values.mean(1),
    }[reduction]
    torch.testing.assert_close(result.heatmap(reduction), expected)
