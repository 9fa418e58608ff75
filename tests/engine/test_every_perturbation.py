"""What every public perturbation promises, tested over the public list with the cheap settings of `cases.CHEAP`."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import pickle
from contextlib import nullcontext

import cases
import pytest
import torch
from jsonargparse import ArgumentParser
from test_validation import BAD_IMAGES, BAD_SEEDS, BAD_TARGETS

from robustsigma import Corruption, Perturbation
from robustsigma.engine import attributors, noise, perturbations

PUBLIC = [
    cls
    for cls in (getattr(perturbations, name) for name in perturbations.__all__)
    if inspect.isclass(cls) and issubclass(cls, Perturbation) and not inspect.isabstract(cls)
]
SETTINGS = [pytest.param(p, id=f"{cls.__name__}{i}") for cls in PUBLIC for i, p in enumerate(cases.CHEAP.get(cls, ()))]
every = pytest.mark.parametrize("perturbation", SETTINGS)

STOCHASTIC = {
    *("GaussianNoise0", "FGSM1", "NFGSM0", "NFGSM1", "PGD0", "PGD2", "PGD3", "PGD5", "PGD6", "SigmaSample0"),
    *("SigmaSample1", "PathEnd0", "PathEnd1", "Mixture0", "Corruption0", "Corruption2", "TorchAttack0", "TorchAttack1"),
    *("Square0", "Square1", "Square2", "APGD0", "APGD1", "APGD2", "APGD3", "AutoAttack0", "AutoAttack1"),
    *("AttributionMasked1", "AttributionMasked2"),
}
CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def problem(count: int = 5, dtype: torch.dtype = torch.float32, **kwargs):
    net = cases.cnn_bn_dropout().to(dtype)
    return cases.classifier(net, **kwargs), cases.images(count, dtype=dtype), cases.labels(count), cases.seeds(count)


def test_every_concrete_perturbation_is_public_and_has_cheap_settings():
    assert cases.concrete(Perturbation) == set(PUBLIC)
    without = {cls for cls in PUBLIC if not cases.CHEAP.get(cls)}
    assert {cls.__name__ for cls in without if importlib.util.find_spec(cases.EXTRAS.get(cls, "torch"))} == set()


@every
def test_is_a_frozen_dataclass_with_defaults(perturbation):
    cls = type(perturbation)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen


@every
def test_shape_dtype_bounds(perturbation):
    clf, x, y, seed = problem()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        result = perturbation(clf, x.to(dtype), y, seed=seed, return_info=True)
        assert result.images.shape == x.shape
        assert result.images.dtype == dtype
        assert result.images.isfinite().all()
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        assert not result.images.requires_grad
        assert result.images.grad_fn is None
        for name, kind in (("attempted", torch.bool), ("converged", torch.bool), ("steps", torch.int64)):
            values = getattr(result, name)
            assert values.shape == (len(x),)
            assert values.dtype == kind
        assert not (result.converged & ~result.attempted).any()


@every
def test_a_batch_equals_singles(perturbation):
    if perturbation.batch_dependent:
        pytest.skip("says itself that it depends on the batch")
    # The rounding of a linear layer may depend on the batch, and SIGMA's walk divides differences of scores.
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        clf, x, y, seed = problem(dtype=dtype)
        whole = perturbation(clf, x, y, seed=seed)
        singles = [perturbation(clf, x[i : i + 1], y[i : i + 1], seed=seed[i : i + 1]) for i in range(len(x))]
        assert torch.allclose(whole, torch.cat(singles), rtol=0, atol=tolerance), dtype
        order = torch.tensor([3, 1, 4, 0, 2])
        permuted = perturbation(clf, x[order], y[order], seed=seed[order])
        assert torch.allclose(permuted, whole[order], rtol=0, atol=tolerance), dtype


@every
def test_chunk_size_does_not_matter(perturbation):
    clf, x, y, seed = problem(dtype=torch.float64)
    whole = perturbation(clf, x, y, seed=seed)
    for chunk_size in (1, 2, 3):
        chunked = problem(dtype=torch.float64, chunk_size=chunk_size)[0]
        assert torch.allclose(perturbation(chunked, x, y, seed=seed), whole, rtol=0, atol=1e-11), chunk_size


@every
def test_seeds(perturbation, request):
    clf, x, y, seed = problem()
    first = perturbation(clf, x, y, seed=seed)
    assert torch.equal(perturbation(clf, x, y, seed=seed), first)
    differs = not torch.equal(perturbation(clf, x, y, seed=seed + 1), first)
    assert differs == (request.node.callspec.id in STOCHASTIC)


@every
def test_an_int_seed_is_combined_with_each_images_pixels(perturbation):
    clf, x, y, _ = problem()
    assert torch.equal(perturbation(clf, x, y, seed=7), perturbation(clf, x, y, seed=noise.seeds(7, x)))
    assert torch.equal(perturbation(clf, x, 1, seed=7), perturbation(clf, x, torch.full((len(x),), 1), seed=7))


@every
def test_no_side_effects(perturbation):
    """Modes, flags, statistics, `.grad`, hooks and the arguments stay, also when the network raises."""
    passes = None
    for after in (10**9, 0, 1):
        net = cases.cnn_bn_dropout()
        net[0].weight.grad = torch.ones_like(net[0].weight)
        raising = cases.Raising(net, after=after)
        clf = cases.classifier(raising)
        x, y, seed = cases.images().requires_grad_(), cases.labels(), cases.seeds()
        before, given = cases.state_of(clf), [t.detach().clone() for t in (x, y, seed)]
        raises = passes is not None and passes > after
        with pytest.raises(RuntimeError, match="midway") if raises else nullcontext():
            perturbation(clf, x, y, seed=seed)
        passes = raising.calls if passes is None else passes
        assert cases.state_of(clf) == before, after
        assert all(torch.equal(a, b) for a, b in zip((x, y, seed), given, strict=True))
        assert x.grad is None
        assert x.requires_grad


@every
def test_any_context_gives_the_same_images(perturbation):
    clf, x, y, seed = problem()
    wanted = perturbation(clf, x, y, seed=seed)
    for name, context in CONTEXTS.items():
        with context():
            # Made inside, as a loader's batch is: an inference tensor under inference mode.
            got = perturbation(clf, x.clone(), y.clone(), seed=seed.clone())
            assert torch.is_grad_enabled() == (name == "autocast")
        assert torch.equal(wanted, got), name


@every
def test_the_result_can_be_trained_on(perturbation):
    clf, x, y, seed = problem()
    clf.eval()  # dropout would draw from the global RNG
    loss = torch.nn.functional.cross_entropy(clf(perturbation(clf, x, y, seed=seed)), y)
    loss.backward()
    assert clf.net[0].weight.grad is not None


@every
def test_memory_layout_and_views_do_not_matter(perturbation):
    clf, x, y, seed = problem(dtype=torch.float64)
    wanted = perturbation(clf, x, y, seed=seed)
    last = perturbation(clf, x.to(memory_format=torch.channels_last), y, seed=seed)
    assert torch.allclose(last, wanted, rtol=0, atol=1e-11)
    view = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.allclose(perturbation(clf, view, y, seed=seed), wanted, rtol=0, atol=1e-11)


@every
def test_odd_sizes(perturbation):
    for channels, size, classes in ((1, 1, 2), (1, 8, 2), (4, 3, 3), (3, 1, 5)):
        clf = cases.classifier(cases.linear(channels, size, classes), mean=(0.5,), std=(0.5,))
        x, y = cases.images(3, channels=channels, size=size), cases.labels(3, classes=classes)
        if isinstance(perturbation, Corruption) and (channels not in (1, 3) or size < 8):
            with pytest.raises(ValueError, match="images: expected 1 or 3 channels of at least 8 pixels a side for"):
                perturbation(clf, x, y, seed=0)
            continue
        got = perturbation(clf, x, y, seed=0)
        assert got.shape == x.shape
        assert got.isfinite().all()


@every
def test_degenerate_nets_and_images_stay_finite(perturbation):
    x = torch.cat([cases.images(2), *(torch.full((2, *cases.images().shape[1:]), fill) for fill in (0.0, 0.5, 1.0))])
    for net in (cases.constant(), cases.saturated()):
        got = perturbation(cases.classifier(net), x, cases.labels(8), seed=cases.seeds(8))
        assert got.isfinite().all()
        assert got.min() >= 0
        assert got.max() <= 1


@pytest.mark.unsound_networks
@every
def test_networks_that_return_probabilities(perturbation):
    x, y, seed = cases.images(16), cases.labels(16), cases.seeds(16)
    clf = cases.classifier(cases.Probabilities(cases.mlp()))
    named = pytest.warns(UserWarning, match="net: The network returns probabilities")
    with named if perturbation.depends_on_model else nullcontext():
        first = perturbation(clf, x, y, seed=seed)
    assert first.isfinite().all()
    assert torch.equal(perturbation(clf, x, y, seed=seed), first)  # without another warning


@every
def test_bad_arguments(perturbation):
    clf, x, y, seed = problem(4)
    for bad, message in BAD_IMAGES.values():
        with pytest.raises(ValueError, match=message):
            perturbation(clf, bad, y, seed=seed)
    for bad, message in BAD_TARGETS.values():
        with pytest.raises(ValueError, match=message):
            perturbation(clf, x, bad, seed=seed)
    for bad, message in BAD_SEEDS.values():
        with pytest.raises(ValueError, match=message):
            perturbation(clf, x, y, seed=bad)
    for _ in range(2):  # before and after a first call
        for label in (-1, 3, 1000):
            with pytest.raises(ValueError, match=r"labels: expected class indices in \[0, 2\], got \["):
                perturbation(clf, x, torch.tensor([0, 1, label, 0]), seed=seed)
        perturbation(clf, x, y, seed=seed)


@every
def test_seed_is_required_by_name(perturbation):
    clf, x, y, seed = problem()
    with pytest.raises(TypeError, match="seed"):
        perturbation(clf, x, y)
    with pytest.raises(TypeError, match="positional"):
        perturbation(clf, x, y, seed)


@every
def test_pickle_copy_repr_equality_hash(perturbation):
    names = {name: getattr(module, name) for module in (attributors, perturbations) for name in module.__all__}
    for again in (
        pickle.loads(pickle.dumps(perturbation)),
        copy.deepcopy(perturbation),
        dataclasses.replace(perturbation),
        eval(repr(perturbation), names),
    ):
        assert again == perturbation
        assert again is not perturbation
        assert hash(again) == hash(perturbation)


def test_different_settings_differ():
    settings = [setting for cls in PUBLIC for setting in cases.CHEAP.get(cls, ())]
    assert len(set(settings)) == len(settings)


@pytest.mark.parametrize("cls", PUBLIC)
def test_unknown_arguments_are_refused(cls):
    # TorchAttack takes those of the attack by keyword.
    with pytest.raises((TypeError, ValueError), match=r"unexpected keyword|^arguments: .*, got no_such_argument"):
        cls(no_such_argument=1)


@pytest.mark.slow
@every
def test_yaml_round_trip(perturbation):
    """What a YAML file says becomes the same object, and is written back the same."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--p", type=Perturbation)
    config = parser.parse_object({"p": as_config(perturbation)})
    assert parser.instantiate(config).p == perturbation
    again = parser.parse_string(parser.dump(config))
    assert parser.instantiate(again).p == perturbation


def as_config(value: object) -> object:
    """Return the YAML form of a dataclass: class path and arguments; a `MixtureComponent` is plain data."""
    if isinstance(value, (tuple, list)):
        return [as_config(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    arguments = {field.name: as_config(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, perturbations.MixtureComponent):
        return arguments
    return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": arguments}
