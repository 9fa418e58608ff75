"""What people pass in place of what a signature says: it works as they mean it, or one error says what to do."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import cases
import metric_cases
import numpy as np
import pytest
import torch
from torch import nn

import robustsigma.engine.attributors as attributors
from robustsigma import (
    FGSM,
    PGD,
    Attributor,
    Classifier,
    GaussianNoise,
    Gradient,
    Identity,
    IntegratedGradients,
    Mixture,
    Sigma,
    TorchAttack,
)
from robustsigma.benchmarking import Benchmark
from robustsigma.data import Baggage
from robustsigma.engine import validation
from robustsigma.engine.checks import inspect_classifier
from robustsigma.engine.metrics import InsertionDeletion, MetricContext
from robustsigma.evaluation import Evaluation
from robustsigma.evaluation.settings import Retraining, Sweep
from robustsigma.lightning import LitClassifier, RobustDataModule
from robustsigma.models import Pretrained
from robustsigma.runs.fingerprint import describe

X, Y = cases.images(), [0, 1, 2, 0]
SCALARS = {
    "numpy": lambda value: (np.int64 if isinstance(value, int) else np.float64)(value),
    "array": np.asarray,
    "tensor": lambda value: torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64),
}


def settings() -> list[Any]:
    """Return the default settings of every public attributor, perturbation and metric, and of what holds them."""
    adapters = ("CaptumMethod", "FunctionMethod")
    public = (getattr(attributors, name) for name in attributors.__all__ if name not in adapters)
    kinds = [each for each in public if isinstance(each, type) and issubclass(each, Attributor)]
    found = [kind() for kind in kinds if kind is not Attributor]
    found += [made[0] for made in (*cases.CHEAP.values(), *metric_cases.CHEAP.values())]
    return [
        *found,
        Evaluation(),
        Evaluation().training,
        Evaluation().retraining,
        Evaluation().checks,
        Baggage(),
        Sweep(),
    ]


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("made", settings(), ids=lambda made: type(made).__name__)
def test_scalars_of_numpy_and_torch_are_stored_as_python_numbers(made, kind):
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if type(value) not in (int, float):
            continue
        other = dataclasses.replace(made, **{field.name: SCALARS[kind](value)})
        assert type(getattr(other, field.name)) is type(value), field.name
        assert other == made
        assert json.dumps(describe(other)) == json.dumps(describe(made))
        assert pickle.loads(pickle.dumps(other)) == made


def test_arrays_lists_and_paths_are_stored_as_tuples_and_text():
    assert attributors.AGI(classes=np.arange(3)) == attributors.AGI(classes=[0, np.int64(1), 2])
    assert hash(attributors.AGI(classes=[0, 1])) == hash(attributors.AGI(classes=(0, 1)))
    assert Sweep(stds=np.array([0.25, 0.5])).stds == (0.25, 0.5)
    assert Evaluation(seeds=np.int64(2), mean=np.array([0.5])) == dataclasses.replace(
        Evaluation(), seeds=2, mean=(0.5,)
    )
    assert Pretrained("x.Net", weights=Path("a") / "b.pt").weights == str(Path("a", "b.pt"))
    assert Mixture({FGSM(0.5): np.float32(0.25)}) == Mixture({FGSM(0.5): 0.25})


def test_arguments_of_others_keep_their_lists():
    given = Pretrained("x.Net", arguments={"layers": [2, 2], "width": np.int64(4)}).arguments
    assert given == {"layers": [2, 2], "width": 4}
    assert type(given["layers"]) is list
    assert type(given["width"]) is int


def test_subclasses_without_checks_are_converted_too():
    @dataclasses.dataclass(frozen=True)
    class Mine(FGSM):
        factor: float = 1.0

    @dataclasses.dataclass(frozen=True)
    class Unresolved(FGSM):
        other: Mine | None = None  # a name that only this function knows

    @dataclasses.dataclass(frozen=True)
    class Plain(validation.Settings):
        steps: int = 1

    assert type(Mine(factor=np.float64(2)).factor) is float
    with pytest.raises(ValueError, match=r"^label: expected one of"):
        Unresolved(label="zzz")
    assert type(Plain(np.int8(2)).steps) is int


def test_a_number_or_an_array_is_a_baseline():
    classifier, target = cases.classifier(), [0] * 4
    values = [
        IntegratedGradients(steps=2, baseline=given)(classifier, X, target).values
        for given in (0.5, np.float32(0.5), torch.tensor(0.5), np.full((3, 8, 8), 0.5, np.float32))
    ]
    assert all(torch.equal(each, values[0]) for each in values)


def test_modules_and_classifiers_take_numpy_numbers():
    module = RobustDataModule(Baggage(size=16, train=5, val=5, test=5), batch_size=np.int64(4), seed=np.int64(1),
                              limits={"train": np.int32(3)})  # fmt: skip
    assert [type(each) for each in (module.batch_size, module.seed, module.limits["train"])] == [int] * 3
    assert type(Classifier(cases.mlp(), chunk_size=np.int64(2)).chunk_size) is int
    assert type(LitClassifier(cases.mlp(), label_smoothing=np.float32(0.5)).label_smoothing) is float


@pytest.mark.parametrize(
    "given", [Y, tuple(Y), np.array(Y), np.array(Y, np.uint8), torch.tensor(Y), [np.int64(y) for y in Y]]
)
def test_classes_may_be_a_list_or_an_array(given):
    classifier = cases.classifier()
    assert Gradient()(classifier, X, given).target.tolist() == Y
    assert torch.equal(FGSM(0.1)(classifier, X, given, seed=0), FGSM(0.1)(classifier, X, torch.tensor(Y), seed=0))
    assert MetricContext(classifier, X, given).target.tolist() == Y


CALLS = {
    "attributor": lambda model: Gradient()(model, X, Y).values,
    "perturbation": lambda model: FGSM(0.1)(model, X, Y, seed=0),
    "apply": lambda model: FGSM(0.1)(model, X, Y, seed=0),
    "metric": lambda model: InsertionDeletion()(MetricContext(model, X, Y), X[:, 0]).values["insertion"],
    "checks": lambda model: len(inspect_classifier(model, X, torch.tensor(Y)).flags),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_a_bare_network_works_and_one_warning_says_how_it_is_used(call):
    net = cases.mlp()
    state = cases.state_of(net)
    with pytest.warns(
        UserWarning, match="classifier: Sequential is used as a network for images in .0, 1., with mean 0"
    ):
        got = CALLS[call](net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = CALLS[call](net)
    expected = CALLS[call](Classifier(net))
    assert torch.equal(torch.as_tensor(got), torch.as_tensor(expected))
    assert torch.equal(torch.as_tensor(again), torch.as_tensor(expected))
    assert cases.state_of(net) == state


def test_a_module_with_a_classifier_lends_it():
    module = LitClassifier(cases.mlp(), mean=(0.5,), std=(0.25,))
    assert torch.equal(CALLS["perturbation"](module), CALLS["perturbation"](module.classifier))

    class Torchvisions(nn.Sequential):  # whose networks call their last layer so
        @property
        def classifier(self):
            return self[-1]

    with pytest.warns(UserWarning, match="Torchvisions is used"):
        CALLS["perturbation"](Torchvisions(*cases.mlp()))


@pytest.mark.parametrize("model", ["resnet18", None, torch.relu, nn.Linear, {"net": cases.mlp()}])
@pytest.mark.parametrize("call", CALLS)
def test_anything_else_is_no_network(call, model):
    with pytest.raises(ValueError, match=r"^classifier: expected a robustsigma.Classifier or a torch.nn.Module, got"):
        CALLS[call](model)


def test_a_benchmark_of_modules_is_refused_at_once():
    metrics = [InsertionDeletion()]
    for model in (cases.mlp(), Classifier(cases.mlp()), 3):
        with pytest.raises(ValueError, match=r"^models.mine: expected a .safetensors file, .*save_model"):
            Benchmark(models={"mine": model}, metrics=metrics)


HWC = X.permute(0, 2, 3, 1)
IMAGES = {
    "channels last": (HWC, r"got shape \(4, 8, 8, 3\), channels last; use images.permute\(0, 3, 1, 2\)"),
    "uint8 channels last": ((HWC * 255).byte(), r"channels last; use images.permute"),
    "one": (X[0], r"images.unsqueeze\(0\) is a batch of one image"),
    "one, channels last": (HWC[0], r"images.permute\(2, 0, 1\).unsqueeze\(0\) is a batch of one image"),
    "uint8": ((X * 255).byte(), r"got torch.uint8; divide integer pixels by 255"),
    "0 to 255": (X * 255, r"got \[.*\]; divide by 255"),
    "0 to 65535": (X * 65535, r"got \[.*\]; divide by 65535"),
    "normalized": ((X - 0.5) / 0.25, r"normalization belongs in Classifier\(mean=…, std=…\)"),
    "array": (X.numpy(), r"got ndarray; torch.as_tensor\(images\) makes one"),
    "one channel": (X[:, :1], r"with 3 channels, as the network takes, got \(1, 8, 8\); .* repeats a gray channel"),
    "one channel last": (
        X.permute(0, 2, 3, 1)[..., :1], r"with 3 channels, .*got \(8, 8, 1\); use images.permute",
    ),
    "RGBA": (torch.cat([X, X[:, :1]], 1), r"with 3 channels, as the network takes, got \(4, 8, 8\)$"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("method", [Gradient(), FGSM(0.1)], ids=["attributor", "perturbation"])
def test_errors_about_images_say_what_to_do(method, name):
    x, told = IMAGES[name]
    conv = nn.utils.skip_init(nn.Conv2d, 3, 2, 3)
    classifier = Classifier(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ValueError, match=f"^images: expected .*{told}"):
        method(classifier, x, 0, seed=0)


def test_images_of_unusual_channels_are_taken():
    for shape in ((2, 22, 40, 1), (2, 4, 3, 3), (2, 6, 1, 16)):
        validation.images(torch.full(shape, 0.5), Classifier.bounds)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, "mean: expected numbers for images in .0, 1., .*; divide mean and std"),
        ({"std": [58.395, 57.12, 57.375]}, "std: expected numbers for images in .0, 1., .*0..255 by 255"),
        ({"mean": "imagenet"}, "mean: expected numbers, one per channel, got 'imagenet'"),
        ({"net": "resnet18"}, "net: expected a torch.nn.Module, got str"),
    ],
)
def test_errors_of_a_classifier_say_what_to_do(kwargs, told):
    with pytest.raises(ValueError, match=told):
        Classifier(**{"net": cases.mlp(), **kwargs})
    Classifier(cases.mlp(), mean=[0.485, 0.456, 0.406], std=[1 / 255] * 3)


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1, 2, 0]), torch.tensor([True, False, True, False])])
def test_labels_of_another_dtype_are_told_how_to_be_converted(labels):
    told = rf"labels: expected integer class indices, got {labels.dtype}; convert with .long\(\)"
    with pytest.raises(ValueError, match=told):
        FGSM(0.1)(cases.classifier(), X, labels, seed=0)


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: Sigma(objective="log_probs"), "log_prob"),
        (lambda: FGSM(label="True"), "true"),
        (lambda: IntegratedGradients(baseline="blak"), "black"),
        (lambda: InsertionDeletion(reduction="abssum"), "abs_sum"),
    ],
)
def test_a_misspelled_choice_gets_the_name_that_was_meant(make, meant):
    with pytest.raises(ValueError, match=f"; did you mean '{meant}'\\?$"):
        make()
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        FGSM(label="zzz")


def test_a_text_that_is_none_of_a_literal_is_refused():
    checked = set()
    for made in settings():
        hints = get_type_hints(type(made))
        for field in dataclasses.fields(made):
            if field.init and get_origin(hints[field.name]) is Literal:
                with pytest.raises(ValueError, match=rf"^{field.name}: expected one of '.*', got 'zzz'$"):
                    dataclasses.replace(made, **{field.name: "zzz"})
                checked.add(field.name)
    assert checked >= {"score", "reduction", "tie_break", "norm", "loss", "by"}


def test_results_print_a_few_lines():
    classifier = cases.classifier()
    result = Sigma(alpha=0.5, beta=0.3, epsilon=0.2, objective="log_prob", paths=2, max_steps=6)(classifier, X, Y)
    text = repr(result)
    assert len(text.splitlines()) < 20
    assert len(text) < 1200
    share = result.converged.double().mean().item()
    for told in ("values: float32 (4, 3, 8, 8) in [", "target: int64 (4,) in [0, 2]", f"converged paths: {share:.0%}",
                 f"mean completeness gap: {result.gap().double().mean().item():.3g}"):  # fmt: skip
        assert told in text
    others = [
        FGSM(0.1)(classifier, X, Y, seed=0, return_info=True),
        InsertionDeletion()(MetricContext(classifier, X, Y), X[:, 0]),
    ]
    for other in others:
        assert repr(other).startswith(f"{type(other).__name__}(\n")
        assert len(repr(other)) < 1200
    empty = dataclasses.replace(result, drop=torch.full((4,), torch.nan), target=torch.zeros(0, dtype=torch.int64))
    assert "drop: float32 (4,), all NaN" in repr(empty)


@pytest.mark.parametrize("given", [FGSM, "FGSM", None, 0.25])
def test_settings_take_perturbations_and_methods_not_their_names_or_classes(given):
    with pytest.raises(ValueError, match=r"^conditions.x: expected a Perturbation, got"):
        Evaluation(conditions={"clean": Identity(), "x": given})
    with pytest.raises(ValueError, match=r"^retrain.x: expected a Perturbation, got"):
        Retraining(retrain={"x": given})
    with pytest.raises(ValueError, match=r"^methods.x: expected an Attributor, got"):
        Benchmark(methods={"x": given}, metrics=[InsertionDeletion()])


@pytest.mark.parametrize("value", ["false", "no", 1, 0, None])
@pytest.mark.parametrize("make", [lambda v: FGSM(0.1, random_start=v), lambda v: PGD(0.1, random_start=v)])
def test_what_is_true_or_false_is_not_a_text_or_a_number(make, value):
    with pytest.raises(ValueError, match="random_start: expected True or False"):
        make(value)


def test_numpy_booleans_are_booleans():
    assert FGSM(0.1, random_start=np.bool_(True)).random_start is True


def test_a_standard_deviation_of_bytes_is_named():
    with pytest.raises(ValueError, match=r"std: expected a standard deviation in \[0, 1\].*divide by 255"):
        GaussianNoise(25)


def test_radius_and_steps_of_torchattacks_are_checked():
    pytest.importorskip("torchattacks")
    with pytest.raises(ValueError, match=r"eps: expected a radius in \[0, 1\].*divide by 255"):
        TorchAttack("PGD", eps=8, steps=3)(cases.classifier(), cases.images(), cases.labels(), seed=0)
    with pytest.raises(ValueError, match="steps: expected an integer of at least 1"):
        TorchAttack("PGD", steps=-3)
