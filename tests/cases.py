"""Tiny networks, images and settings shared by the tests. Nothing here reads or writes the global RNG."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

import robustsigma.engine
from robustsigma import (
    APGD,
    FAB,
    FGSM,
    FMN,
    NFGSM,
    PGD,
    AttributionMasked,
    AutoAttack,
    Classifier,
    Corruption,
    GaussianNoise,
    Identity,
    IntegratedGradients,
    Mixture,
    MixtureComponent,
    PathEnd,
    Perturbation,
    Sigma,
    SigmaSample,
    Square,
    TorchAttack,
)

CHANNELS, SIZE, CLASSES = 3, 8, 3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count=4, *, channels=CHANNELS, size=SIZE, seed=0, dtype=torch.float32) -> Tensor:
    """Return uniform images in [0.05, 0.95], (count, channels, size, size); a longer batch begins with a shorter."""
    drawn = torch.rand(count, channels, size, size, generator=generator(seed), dtype=torch.float64)
    return (0.05 + 0.9 * drawn).to(dtype)


def labels(count: int = 4, *, classes: int = CLASSES) -> Tensor:
    return torch.arange(count) % classes


def seeds(count: int = 4, *, start: int = 100) -> Tensor:
    """Return a different seed for each image, int64 (count,)."""
    return torch.arange(start, start + count)


def _fill(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Draw all weights of an uninitialized module from its own generator: normal, scaled by the fan-in."""
    source = generator(seed)
    for parameter in module.parameters():
        fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
        drawn = torch.randn(parameter.shape, generator=source, dtype=torch.float64) * gain / fan_in**0.5
        parameter.data = drawn.to(parameter.dtype)
    return module


def _made(layer: Callable[..., nn.Module], *args: int, **kwargs: object) -> nn.Module:
    """Make a layer without its initialization, which would draw from the global RNG."""
    return nn.utils.skip_init(layer, *args, **kwargs)


def linear(channels: int = CHANNELS, size: int = SIZE, classes: int = CLASSES, *, gain: float = 3.0) -> nn.Module:
    """Return flatten and one linear layer: gradients are its weights, `net[1].weight`."""
    net = nn.Sequential(nn.Flatten(), _made(nn.Linear, channels * size * size, classes))
    return _fill(net, 1, gain)


class Quadratic(nn.Module):
    """z_k = b_k.x + x.diag(a_k).x / 2: the gradient is b_k + a_k x, so path integrals have closed forms."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(classes, features))
        self.b = nn.Parameter(torch.empty(classes, features))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat @ self.b.T + flat.square() @ self.a.T / 2


def quadratic(channels: int = CHANNELS, size: int = SIZE, classes: int = CLASSES) -> nn.Module:
    return _fill(Quadratic(channels * size * size, classes), 2, 3.0)


def mlp(channels: int = CHANNELS, size: int = SIZE, classes: int = CLASSES) -> nn.Module:
    """Return a smooth network with one hidden layer of tanh."""
    net = nn.Sequential(
        nn.Flatten(), _made(nn.Linear, channels * size * size, 16), nn.Tanh(), _made(nn.Linear, 16, classes)
    )
    return _fill(net, 3, 3.0)


def cnn_bn_dropout(channels: int = CHANNELS, classes: int = CLASSES) -> nn.Module:
    """Return a network in training mode with non-trivial BatchNorm statistics, dropout and a frozen submodule.

    `net[4]`, the frozen one, is in eval mode and has parameters without gradients, as when fine-tuning.
    """
    frozen = nn.Sequential(_made(nn.Conv2d, 6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    net = nn.Sequential(
        _made(nn.Conv2d, channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        frozen,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        _made(nn.Linear, 24, classes),
    )
    _fill(net, 4, 2.5)
    source = generator(5)
    for norm in (net[1], frozen[1]):
        norm.weight.data = 0.5 + torch.rand(6, generator=source)
        norm.running_mean = 0.3 * torch.randn(6, generator=source)
        norm.running_var = 0.5 + torch.rand(6, generator=source)
        norm.num_batches_tracked += 7
    net.train()
    frozen.eval().requires_grad_(False)
    return net


class Constant(nn.Module):
    """The same logits for every image: no gradient reaches the image, and no graph is built."""

    def __init__(self, logits: tuple[float, ...]) -> None:
        super().__init__()
        self.logits_of_all = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_of_all.expand(len(x), -1)


def constant(logits: tuple[float, ...] = (1.0, 0.0, -1.0)) -> nn.Module:
    return Constant(logits)


def saturated(channels: int = CHANNELS, size: int = SIZE, classes: int = CLASSES) -> nn.Module:
    """Return a linear network whose probabilities are 0 or 1 in float32 (margins of hundreds)."""
    return linear(channels, size, classes, gain=3000.0)


class PassCounter(nn.Module):
    """Counts images that went forward and images whose gradient came back.

    Attributes:
        calls: network calls.
        forwards: images forwarded.
        backwards: images backwarded.
        largest: the most images in one call.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.reset()

    def reset(self) -> None:
        self.calls = self.forwards = self.backwards = self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.forwards += len(x)
        self.largest = max(self.largest, len(x))
        if x.requires_grad:
            x.register_hook(self._count_backward)
        return self.net(x)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


class Raising(nn.Module):
    """Raises `RuntimeError("midway")` in every call after the first `after`."""

    def __init__(self, net: nn.Module, after: int = 0) -> None:
        super().__init__()
        self.net, self.after, self.calls = net, after, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.after:
            raise RuntimeError("midway")
        return self.net(x)


class OutOfMemory(nn.Module):
    """Runs out of memory, as a device would, in calls with more than `largest` images."""

    def __init__(self, net: nn.Module, largest: int) -> None:
        super().__init__()
        self.net, self.largest, self.failures = net, largest, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.largest:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return self.net(x)


class Probabilities(nn.Module):
    """A network that ends in softmax, which it should not."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


def classifier(net: nn.Module | None = None, **kwargs: object) -> Classifier:
    """Return a classifier with statistics of its own, of `mlp` by default."""
    return Classifier(mlp() if net is None else net, **{"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), **kwargs})


def state_of(module: nn.Module) -> dict[str, object]:
    """Return everything of a module that a caller may not find changed: modes, flags, gradients and bits."""
    return {
        "modes": {name: child.training for name, child in module.named_modules()},
        "flags": {name: p.requires_grad for name, p in module.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in module.named_parameters()},
        "values": {name: value.tolist() for name, value in module.state_dict().items()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in module.named_modules()
        },
    }


_WALK = Sigma(alpha=0.5, beta=0.3, epsilon=0.2, objective="log_prob", paths=2, max_steps=6)

# Cheap settings of every public perturbation: what the tests over the list run with.
CHEAP: dict[type[Perturbation], tuple[Perturbation, ...]] = {
    Identity: (Identity(),),
    GaussianNoise: (GaussianNoise(0.2),),
    FGSM: (FGSM(0.05), FGSM(0.05, random_start=True), FGSM(0.05, label="predicted")),
    NFGSM: (NFGSM(0.05), NFGSM(0.05, k=0.5, label="predicted")),
    PGD: (
        PGD(0.05, steps=3),
        PGD(0.05, step_size=0.02, steps=2, random_start=False),
        PGD(0.05, steps=2, restarts=3, targeted="random"),
        PGD(0.5, steps=2, norm="l2", restarts=2),
        PGD(0.5, steps=2, norm="l2", random_start=False, targeted="second"),
        PGD(0.05, steps=2, targeted=1),
        PGD(0.05, steps=2, objective="kl", eot=2),
    ),
    AttributionMasked: (
        AttributionMasked(FGSM(0.05)),
        AttributionMasked(GaussianNoise(0.2), where="low", fraction=0.5),
        AttributionMasked(FGSM(0.05), IntegratedGradients(steps=2), where="random", fraction=0.1),
    ),
    Corruption: (Corruption("gaussian_noise", 1), Corruption("contrast", 5), Corruption("spatter", 3)),
    APGD: (
        APGD(0.05, steps=4),
        APGD(0.5, "l2", "dlr", steps=3, restarts=2),
        APGD(3.0, "l1", "dlr-targeted", steps=3, targets=2, wide_start=True),
        APGD(0.05, loss="margin", steps=2, eot=2),
    ),
    FAB: (FAB(0.05, steps=3, targets=2), FAB(None, "l2", steps=3), FAB(3.0, "l1", steps=2, restarts=2, targeted=False)),
    FMN: (FMN(steps=4), FMN("l2", steps=3), FMN("l1", steps=3)),
    Square: (Square(0.05, queries=4), Square(0.5, 5, "l2"), Square(3.0, 5, "l1", rescale=False)),
    AutoAttack: (AutoAttack(0.05, steps=2, queries=4), AutoAttack(0.5, "l2", "rand", steps=2)),
    SigmaSample: (SigmaSample(_WALK), SigmaSample(_WALK, fraction=0.5, unconverged="original")),
    PathEnd: (PathEnd(_WALK), PathEnd(IntegratedGradients(steps=2, baseline="gaussian"))),
    Mixture: (Mixture((MixtureComponent(FGSM(0.05), 0.4), MixtureComponent(GaussianNoise(0.2), 0.4))),),
}

# Those that need an extra have settings, and are tested, where it is installed.
EXTRAS: dict[type[Perturbation], str] = {Corruption: "albumentations", TorchAttack: "torchattacks"}
if find_spec("torchattacks"):
    CHEAP[TorchAttack] = (
        TorchAttack("PGD", {"steps": 2}, eps=0.05),
        TorchAttack("Square", {"n_queries": 8}, eps=0.1),
        TorchAttack("CW", {"steps": 4}, eps=0.5, norm="l2"),
    )
if not find_spec("albumentations"):
    del CHEAP[Corruption]


def concrete(base: type) -> set[type]:
    """Return every class of the package that derives from a base of the engine, is not abstract and not `published`."""
    for module in pkgutil.walk_packages(robustsigma.engine.__path__, "robustsigma.engine."):
        importlib.import_module(module.name)
    pending, found = [base], set()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__.startswith("robustsigma.") and not inspect.isabstract(kind):
            found.add(kind)
    return {kind for kind in found if ".published" not in kind.__module__}
