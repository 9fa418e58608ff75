"""Constructors and calls of everything on the public lists, with arguments of every kind."""

from __future__ import annotations

import dataclasses
import inspect
import math
from functools import lru_cache
from typing import Any

import cases
import metric_cases
import torch
from hypothesis import strategies as st
from outcome import settled
from settings import cheap, entry_of, every_kind, network, saliency
from test_validation import BAD_IMAGES, BAD_SEEDS, BAD_TARGETS

from robustsigma import data, lightning
from robustsigma.benchmarking import settings as benchmark
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import AttributionMetric
from robustsigma.engine.perturbations import MixtureComponent, SampleCache
from robustsigma.evaluation import settings as evaluation
from robustsigma.models import Architecture, Pretrained

METRIC = metric_cases.CHEAP[metric_cases.InsertionDeletion][0]
# What constructors cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "CorruptionArrays": {"root": "nowhere", "name": "gaussian_noise", "severity": 1},
    "Datasets": {"train": [(torch.zeros(3, 8, 8), 0)], "classes": ("a", "b")},
    "FunctionMethod": {"function": saliency},
    "ImageFolder": {"root": "nowhere"},
    "ImageTable": {"root": "nowhere"},
    "SaliencyBench": {"root": "nowhere"},
    "MedMNIST": {"path": "nowhere.npz"},
    "Torchvision": {"dataset": "CIFAR10"},
    "MixtureComponent": {"perturbation": cases.Identity(), "share": 0.5},
    "Pretrained": {"name": "torchvision:resnet18"},
    "Benchmark": {"metrics": (METRIC,)},
    "Classifier": {"net": cases.mlp()},
    "RobustDataModule": {"dataset": data.Baggage(size=16, train=2, val=2, test=2)},
    "LitClassifier": {"net": cases.mlp()},
    "RobustCallback": {"train": cases.Identity()},
}
SETTINGS = (
    MixtureComponent, ResizeCrop, Architecture, Pretrained, lightning.SampleLabels, data.Albumentations,
    evaluation.Training, evaluation.Retraining, evaluation.Checks, evaluation.Sweep, evaluation.Evaluation,
    benchmark.Benchmark, SampleCache, lightning.Ramp, Classifier, lightning.RobustDataModule, lightning.LitClassifier,
    lightning.RobustCheckpoint, lightning.LastCheckpoint, lightning.SafetensorsExport,
    lightning.OverfittingMonitor, lightning.RobustCallback, lightning.AttributionMonitor, lightning.Trades,
)  # fmt: skip
SOURCES = tuple(
    kind
    for kind in (getattr(data, name) for name in data.__all__)
    if isinstance(kind, type) and issubclass(kind, DatasetSpec) and kind is not DatasetSpec
)
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 2**31, -(2**63), 2**64, 0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300,
    math.nan, math.inf, -math.inf, "", "x", "linf", "black", "a" * 5000, "\0", "../..", b"x", [], {}, (), [0], [-1],
    [math.nan], ["x"], [None], {"x": 1}, {1: 2}, {"": None}, 1j, object(), int, len, torch.tensor(math.nan),
    torch.zeros(0), torch.zeros(2, 3, 8, 8), range(3), {1, 2},
)  # fmt: skip


def _kinds() -> list[tuple[type, dict[str, Any]]]:
    """Return every public class of settings, with what it needs."""
    kinds = [*every_kind(), *cases.CHEAP, *metric_cases.every_kind(), *SOURCES, *SETTINGS]
    return [(kind, NEEDED.get(kind.__name__, {})) for kind in kinds]


KINDS = _kinds()


@st.composite
def constructions(draw: Any) -> tuple[type, dict[str, Any]]:
    """Return a class and its arguments, one or two of which are odd."""
    kind, needed = draw(st.sampled_from(KINDS))
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = [p.name for p in inspect.signature(kind).parameters.values() if p.kind in named]
    odd = draw(st.dictionaries(st.sampled_from(names), st.sampled_from(ODD), min_size=1, max_size=2)) if names else {}
    return kind, {**needed, **odd}


def construct(drawn: tuple[type, dict[str, Any]]) -> None:
    """Make it, and write it down: settings that cannot be shown are in no report."""
    kind, arguments = drawn
    made = settled(lambda: kind(**arguments))
    if made is not None:
        repr(made)


_ODD_IMAGES = [each for each, _ in BAD_IMAGES.values()]
_ODD_TARGETS = [each for each, _ in BAD_TARGETS.values()] + [-1, 3, 2**40, torch.tensor([0, 1, 2, 3])]
_ODD_SEEDS = [each for each, _ in BAD_SEEDS.values()] + [-1, 2**63 - 1]
_FLOATS = (0.0, 1e-300, 1e-30, 1e-3, 0.3, 1.0, 1.5, 30.0, 1e30, 1e300)
_COUNTS = (0, 1, 2, 3)
IMAGES = {
    "usual": cases.images(4),
    "black": torch.zeros(4, 3, 8, 8),
    "white": torch.ones(4, 3, 8, 8),
    "one pixel": torch.full((4, 3, 1, 1), 0.5),
    "gray": cases.images(4, channels=1),
    "wide": cases.images(4, size=24)[:, :, :2],
    "half": cases.images(4, dtype=torch.float16),
    "bfloat": cases.images(4, dtype=torch.bfloat16),
    "double": cases.images(4, dtype=torch.float64),
    "one": cases.images(1),
}
NETS = {"mlp": cases.mlp, "saturated": cases.saturated, "linear": cases.linear, "constant": lambda *_: cases.constant()}


def _settings(kind: type) -> list[Any]:
    if kind in cases.CHEAP:
        return list(cases.CHEAP[kind])
    if kind in metric_cases.CHEAP:
        return list(metric_cases.CHEAP[kind])
    return list(cheap(kind))


CALLED = [*every_kind(), *cases.CHEAP, *metric_cases.every_kind()]


@st.composite
def calls(draw: Any) -> tuple[Any, dict[str, Any]]:
    """Return something to call in its cheap settings, a number or two of them changed, and what to call it with."""
    kind = draw(st.sampled_from(CALLED))
    setting = draw(st.sampled_from(_settings(kind)))
    changed = {}
    for field in dataclasses.fields(setting):
        value = getattr(setting, field.name)
        if isinstance(value, float) and draw(st.integers(0, 5)) == 0:
            changed[field.name] = draw(st.sampled_from(_FLOATS))
        elif type(value) is int and draw(st.integers(0, 9)) == 0:
            changed[field.name] = draw(st.sampled_from(_COUNTS))
    odd = draw(st.sampled_from(["nothing", "nothing", "nothing", "images", "target", "seed"]))
    return setting, {
        "changed": changed,
        "net": draw(st.sampled_from(sorted(NETS))),
        "images": draw(st.sampled_from(sorted(IMAGES))),
        "odd": (odd, draw(st.integers(0, 50))),
        "transformer": kind in every_kind() and entry_of(kind).traits.network == "transformer",
    }


@lru_cache(maxsize=64)
def _classifier(name: str, shape: tuple[int, ...], transformer: bool) -> cases.Classifier:
    net = (
        network("transformer", shape) if transformer else NETS[name](shape[0], shape[1] if shape[1] == shape[2] else 8)
    )
    if not transformer and shape[1] != shape[2] and name != "constant":
        net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), net)
    return cases.Classifier(net, mean=(0.4,), std=(0.6,))


def call(drawn: tuple[Any, dict[str, Any]]) -> None:
    """Call it; what it returns has no number that is none, and images stay images."""
    setting, how = drawn
    found = settled(lambda: _call(setting, how))
    if found is None:
        return
    for name, values, lowest, highest in found:
        assert torch.isfinite(values).all(), f"{name} of {type(setting).__name__} is not finite"
        assert values.numel() == 0 or lowest <= float(values.min()) <= float(values.max()) <= highest, name


def _call(setting: Any, how: dict[str, Any]) -> list[tuple[str, torch.Tensor, float, float]]:
    setting = dataclasses.replace(setting, **how["changed"])
    x = IMAGES[how["images"]]
    if isinstance(setting, AttributionMetric):
        return _evaluate(setting, how)
    classifier = _classifier(how["net"], tuple(x.shape[1:]), how["transformer"]).to(torch.float32)
    y, seed = cases.labels(len(x)), 3
    what, place = how["odd"]
    if what == "images":
        x = _ODD_IMAGES[place % len(_ODD_IMAGES)]
    elif what == "target":
        y = _ODD_TARGETS[place % len(_ODD_TARGETS)]
    elif what == "seed":
        seed = _ODD_SEEDS[place % len(_ODD_SEEDS)]
    result = setting(classifier, x, y, seed=seed)
    if isinstance(result, torch.Tensor):
        return [("images", result, 0, 1)]
    heat = result.heatmap()
    return [("values", result.values, -math.inf, math.inf), ("endpoint", result.endpoint, 0, 1),
            ("drop", result.drop, -math.inf, math.inf), ("heatmap", heat, -math.inf, math.inf)]  # fmt: skip


ATTRIBUTION = cases.IntegratedGradients(steps=2)


def _evaluate(metric: Any, how: dict[str, Any]) -> list[tuple[str, torch.Tensor, float, float]]:
    """Return the values of a metric; where there is none, it says why."""
    subject = metric_cases.subject(3)
    attribution = ATTRIBUTION(subject.classifier, subject.images, subject.target)
    what, place = how["odd"]
    if what != "nothing":
        odd = (torch.zeros_like(attribution.values), torch.full_like(attribution.values, 1e30),
               torch.full_like(attribution.values, 1e-40), attribution.values[:, :, :, :4],
               torch.full_like(attribution.values, torch.nan), attribution.values.sign())  # fmt: skip
        attribution = dataclasses.replace(attribution, values=odd[place % len(odd)])
    scores = metric(subject, attribution)
    found = []
    for name, values in scores.values.items():
        skipped = scores.skipped(name) != 0
        assert (values.isnan() == skipped).all(), f"{name}: no value, and no reason"
        found.append((name, values[~skipped], -math.inf, math.inf))
    return found


TARGETS = {"constructors": (constructions(), construct), "calls": (calls(), call)}
