"""Cheap settings of every attributor and what each method promises: what the tests over the public list run with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import cases
import torch
from cases import CHANNELS, CLASSES, SIZE
from torch import Tensor, nn
from vit import TinyViT

import robustsigma.engine.attributors as public
from robustsigma import SIG, Attributor, BlurIG, GuidedIntegratedGradients, InputXGradient, IntegratedGradients

Shape = tuple[int, int, int]
DEFAULT_SHAPE: Shape = (CHANNELS, SIZE, SIZE)


@dataclass(frozen=True)
class Traits:
    """What a method promises.

    Attributes:
        gap: the most of |sum of values - drop| / (1 + |drop|) on a smooth network, or None without completeness.
        finer: settings with which the gap must shrink to half, for methods whose gap is of discretisation.
        linear_gap: as `gap`, on a linear network, whose path integrals any rule takes exactly; None: no promise.
        draws: other seeds give other values; the places of the settings for which they do, or all or none.
        linear_draws: this shows on a linear network too.
        dummy: a pixel that the network ignores gets nothing (sensitivity b of Sundararajan et al., 2017).
        line: integrates from a black baseline, so that sensitivity a can be put to the test.
        targeted: other targets give other values.
        invariant_to_layers: depends on the function alone, not on where its last layer begins.
        any_module: takes networks without a linear layer.
        shared_passes: passes that images of a batch have in common are counted once, so less than for each alone.
        network: explains networks of any kind, or transformers only.
    """

    gap: float | None = None
    finer: dict[str, Any] | None = None
    linear_gap: float | None = None
    draws: bool | tuple[int, ...] = False
    linear_draws: bool = True
    dummy: bool = True
    line: bool = False
    targeted: bool = True
    invariant_to_layers: bool = True
    any_module: bool = True
    shared_passes: bool = False
    network: str = "any"


@dataclass(frozen=True)
class Entry:
    """A row of the table: traits, and settings as keyword arguments, or a function of (C, H, W) that gives them."""

    settings: tuple[dict[str, Any] | Callable[[Shape], dict[str, Any]], ...]
    traits: Traits = field(default_factory=Traits)


def references(shape: Shape, count: int = 3) -> Tensor:
    """Return images of the given shape for methods that compare with others, (count, C, H, W)."""
    size = max(shape[1:])
    return cases.images(count, channels=shape[0], size=size, seed=50)[:, :, : shape[1], : shape[2]].contiguous()


def saliency(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Return |dF/dx|, as code that knows nothing of attributors does."""
    images.requires_grad_(True)
    score = model(images).gather(1, target[:, None]).sum()
    return torch.autograd.grad(score, images)[0].abs()


def noisy_saliency(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Return the same with random numbers, as one map for each image."""
    maps = saliency(model, images, target)
    return (maps * torch.rand(maps.shape, dtype=maps.dtype)).sum(1)


def _window(shape: Shape) -> Shape:
    return shape[0], min(2, shape[1]), min(2, shape[2])


_LINE = Traits(gap=0.02, finer={"steps": 32}, linear_gap=1e-5, line=True)
_WALK: dict[str, Any] = {"alpha": 0.5, "beta": 0.3, "epsilon": 0.2, "objective": "log_prob", "max_steps": 4}

_TABLE: dict[str, Entry] = {
    "AGI": Entry(
        (
            {"steps": 3, "classes": 1},
            {"step_size": 0.02, "steps": 2, "classes": (0, 1), "score": "logit", "average": "sum"},
        ),
        Traits(gap=0.4, finer={"step_size": 0.002, "steps": 150}, linear_gap=0.1, draws=(0,)),
    ),
    "AttentionAttribution": Entry(({}, {"score": "log_prob"}), Traits(dummy=False, network="transformer")),
    "AttentionRollout": Entry(
        ({}, {"head_fusion": "max", "discard": 0.3}), Traits(dummy=False, targeted=False, network="transformer")
    ),
    "CaptumMethod": Entry(
        (
            {"n_steps": 6},
            lambda shape: {"name": "Occlusion", "sliding_window_shapes": _window(shape), "strides": _window(shape)},
            lambda shape: {"name": "GradientShap", "n_samples": 1, "baselines": references(shape)},
        ),
        Traits(draws=(2,)),
    ),
    "BlurIG": Entry(
        ({"steps": 8, "max_sigma": 2.0}, {"steps": 6, "max_sigma": 1.0}),
        Traits(gap=0.1, finer={"steps": 32}, linear_gap=1e-5),
    ),
    "CrediblePath": Entry(
        (
            {"steps": 6, "max_search": 3, "step_size": 0.02},
            {"steps": 4, "blurs": (0.1,), "max_search": 1, "divisor": "steps"},
            {"steps": 4, "blurs": (0.1,), "max_search": 2, "objective": "cross_entropy", "reverse": True},
        ),
        Traits(draws=True, linear_draws=False),
    ),
    "ExpectedGradients": Entry(
        ({"draws": 6}, lambda shape: {"draws": 4, "references": references(shape), "stratified": False}),
        Traits(draws=True, shared_passes=True),
    ),
    "FunctionMethod": Entry(
        ({"function": saliency}, {"function": noisy_saliency, "stochastic": True}), Traits(draws=(1,))
    ),
    "Gradient": Entry(({},)),
    "GuidedIntegratedGradients": Entry(
        ({"steps": 8, "score": "logit"}, {"steps": 4, "fraction": 0.5, "max_dist": 1.0, "score": "logit"}),
        Traits(gap=0.5, finer={"steps": 64}, linear_gap=1e-5, line=True),
    ),
    "IDG": Entry(
        (
            {"steps": 6},
            {"steps": 4, "sampling": "uniform", "factor": "difference"},
            {"steps": 4, "follow": "changes", "place": "left"},
        ),
        Traits(line=True),
    ),
    "IDGI": Entry(
        (
            {"attributor": IntegratedGradients(steps=6)},
            {"attributor": GuidedIntegratedGradients(steps=4, score="logit")},
            {"attributor": BlurIG(steps=4, max_sigma=2.0, score="log_prob")},
            {"attributor": SIG(steps=4, baseline=("black", "white"))},
        ),
        Traits(gap=1e-5, linear_gap=1e-5),
    ),
    "IG2": Entry(
        (
            lambda shape: {"steps": 4, "step_size": 0.01, "references": references(shape)},
            {"steps": 3, "step_size": 0.02, "score": "log_prob"},
        ),
        Traits(
            gap=0.3,
            finer={"step_size": 0.001, "steps": 40},
            linear_gap=0.01,
            invariant_to_layers=False,
            shared_passes=True,
        ),
    ),
    "InputXGradient": Entry(({}, {"score": "log_prob"})),
    "IntegratedGradients": Entry(({"steps": 8}, {"steps": 6, "rule": "midpoint"}), _LINE),
    "LeGrad": Entry(({}, {"score": "log_prob"}), Traits(dummy=False, network="transformer")),
    "LeftIntegratedGradients": Entry(
        ({"steps": 8}, {"steps": 6, "fraction": 0.55}), Traits(gap=0.4, finer={"steps": 64}, linear_gap=1e-5, line=True)
    ),
    "RandomAttribution": Entry(({},), Traits(draws=True, dummy=False, targeted=False)),
    "SIG": Entry(
        ({"steps": 6, "score": "logit"}, {"steps": 8, "overlap": 0.9, "score": "logit"}),
        Traits(gap=0.3, finer={"steps": 64}, linear_gap=1e-5, line=True),
    ),
    "Sigma": Entry(
        ({**_WALK, "paths": 2}, {**_WALK, "paths": 1, "noise": "perlin", "noise_scale": 3, "range_mode": "clip"}),
        Traits(gap=1e-5, linear_gap=1e-5, draws=True),
    ),
    "SmoothGrad": Entry(
        (
            {"attributor": InputXGradient(), "samples": 3},
            {"attributor": IntegratedGradients(steps=2, baseline="gaussian"), "samples": 4, "std": 0.3},
        ),
        Traits(draws=True),
    ),
}


def entry_of(kind: type[Attributor]) -> Entry:
    """Return the row of a method; one that has none yet runs with its defaults and no promises."""
    return _TABLE.get(kind.__name__, Entry(({},), Traits(dummy=False, targeted=False)))


def traits_of(attributor: Attributor) -> Traits:
    return entry_of(type(attributor)).traits


def every_kind() -> list[type[Attributor]]:
    """Return the concrete methods of the public list."""
    names = (name for name in public.__all__ if name != "CaptumMethod" or find_spec("captum"))
    found = (getattr(public, name) for name in names)
    return [
        kind for kind in found if isinstance(kind, type) and issubclass(kind, Attributor) and kind is not Attributor
    ]


def cheap(kind: type[Attributor], shape: Shape = DEFAULT_SHAPE) -> tuple[Attributor, ...]:
    """Return a method with each of its cheap settings, for images of (C, H, W)."""
    return tuple(kind(**(given(shape) if callable(given) else given)) for given in entry_of(kind).settings)


# Of every public attributor, at the shape of `cases.images()`.
CHEAP_ATTRIBUTORS: dict[type[Attributor], tuple[Attributor, ...]] = {kind: cheap(kind) for kind in every_kind()}


def nets_of(kind: type[Attributor]) -> tuple[str, ...]:
    """Return the names of the networks that a method is tried on."""
    return ("transformer",) if entry_of(kind).traits.network == "transformer" else ("linear", "quadratic", "cnn")


def smooth_net(kind: type[Attributor]) -> str:
    return "transformer" if entry_of(kind).traits.network == "transformer" else "mlp"


def network(name: str, shape: Shape = DEFAULT_SHAPE, classes: int = CLASSES) -> nn.Module:
    """Return a network by name, for images of (C, H, W) where H * W is a square."""
    channels, size = shape[0], round((shape[1] * shape[2]) ** 0.5)
    if name == "transformer":
        return TinyViT(channels, classes, patch=min(2, shape[1])).train()
    if name == "cnn":
        return cases.cnn_bn_dropout(channels, classes)
    return getattr(cases, name)(channels, size, classes)


class Centered(nn.Module):
    """Another network less its mean logits over some images, so that these are of different classes."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.net = net
        with torch.no_grad():
            self.register_buffer("shift", net.eval()(images).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.shift.to(x.dtype)


class Flat(nn.Module):
    """The logits of another network times zero, plus constants: a graph whose gradient is zero everywhere."""

    def __init__(self, net: nn.Module, logits: tuple[float, ...] = (1.0, 0.0, -1.0)) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("constant", torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.net(x) + self.constant.to(x.dtype)


class Scaled(nn.Module):
    """The logits of another network times a factor: with a large one, probabilities are 0 or 1."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)
