"""The networks and images that are measured, and the cheapest pass of a network: the limit of every method.

Weights are random, since a pass costs the same with any weights. Images are the built-in baggage scans.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from robustsigma import Classifier
from robustsigma.data import Baggage
from robustsigma.models import SmallCNN

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETS = ("small", "resnet18", "vit")


@dataclass(frozen=True)
class Scale:
    """The amount of work for a network.

    Args:
        size: height and width of the images.
        batches: batch sizes among which the best is found.
        images: number of images for methods with one row of a batch per image.
        few: number of images for methods with many points per image.
        single: number of images for peers that take one at a time.
        walk: steps of a walk.
        steps: points of a path.
    """

    size: int
    batches: tuple[int, ...]
    images: int
    few: int
    single: int
    walk: int
    steps: int


_CPU = {
    "small": Scale(64, (16, 64, 256), 16, 8, 4, 12, 32),
    "resnet18": Scale(224, (8, 13, 28), 16, 4, 1, 2, 16),
    "vit": Scale(224, (8, 13, 28), 8, 2, 1, 2, 14),
}
_GPU = {
    "small": Scale(64, (256, 1024, 2048), 128, 64, 4, 20, 32),
    "resnet18": Scale(224, (64, 128, 256, 445), 128, 64, 2, 5, 32),
    "vit": Scale(224, (32, 64, 128, 256), 32, 16, 1, 3, 32),
}
_FAST = dict.fromkeys(NETS, Scale(32, (2,), 2, 2, 1, 1, 4))


def scale(name: str, device: torch.device, *, fast: bool) -> Scale:
    """Return the amount of work for a network on a device."""
    return (_FAST if fast else _CPU if device.type == "cpu" else _GPU)[name]


def build(name: str, size: int, device: torch.device) -> nn.Module:
    """Return a network in eval mode; the global generator is restored.

    The ViT is a ViT-B/16, on a CPU one of the same depth and a quarter of the width (DeiT-tiny).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "small":
            net: nn.Module = SmallCNN(3, 10)
        elif name == "resnet18":
            net = torchvision.models.resnet18()
        elif size == 224 and device.type != "cpu":
            net = torchvision.models.vit_b_16()
        else:
            layers, heads, width = (12, 3, 192) if size == 224 else (2, 2, 16)
            net = torchvision.models.VisionTransformer(size, 16, layers, heads, width, 4 * width)
        if name == "vit":
            nn.init.normal_(net.heads.head.weight, std=0.1)  # torchvision's zeros would make every gradient zero
    return net.to(device).eval().requires_grad_(False)


class Plain(nn.Module):
    """A network as its users call it: normalization, then the network itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of images in [0, 1]."""
        return self.net((images - self.mean) / self.std)


@dataclass(frozen=True, eq=False)
class Case:
    """A network and its images.

    Attributes:
        scale: amount of work.
        classifier: the network as robustsigma uses it.
        plain: the network as its peers use it.
        images: images (B, C, H, W).
        target: predicted classes (B,).
        seeds: seeds (B,).
    """

    scale: Scale
    classifier: Classifier
    plain: Plain
    images: Tensor
    target: Tensor
    seeds: Tensor

    def first(self, count: int) -> Case:
        """Return the case with its first images."""
        return replace(self, images=self.images[:count], target=self.target[:count], seeds=self.seeds[:count])

    @property
    def fewer(self) -> Case:
        """The case with `scale.few` images."""
        return self.first(self.scale.few)

    def exact(self) -> Case:
        """Return the case in double precision, with `scale.single` images."""
        classifier, plain = (copy.deepcopy(module).double() for module in (self.classifier, self.plain))
        few = self.first(self.scale.single)
        return replace(few, classifier=classifier, plain=plain, images=few.images.double())


def case(name: str, device: torch.device, *, fast: bool) -> Case:
    """Return a network with its images."""
    of = scale(name, device, fast=fast)
    plain = Plain(build(name, of.size, device)).to(device).eval()
    images = Baggage(size=of.size, train=1, val=1, test=of.images).split("test").batch(range(of.images))[0].to(device)
    with torch.no_grad():
        target = plain(images).argmax(1)
    seeds = torch.arange(100, 100 + of.images, device=device)
    return Case(of, Classifier(plain.net, mean=MEAN, std=STD), plain, images, target, seeds)


def seconds(call: Callable[[], Any], least: float = 0.0) -> float:
    """Return the median seconds of a call, which is repeated for at least `least` seconds after a warm-up."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=least).median


@dataclass
class Passes:
    """The number of images that went forward, also for a gradient, and of images whose gradient came back."""

    forwards: float = 0
    backwards: float = 0

    def per(self, images: int) -> dict[str, float]:
        """Return both numbers per image."""
        return {"forwards": self.forwards / images, "backwards": self.backwards / images}


@contextmanager
def counted(network: nn.Module) -> Iterator[Passes]:
    """Count the passes that a network or a `Classifier` makes in the body."""
    passes = Passes()

    def back(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    def forward(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        passes.forwards += len(inputs[0])
        if inputs[0].requires_grad and torch.is_grad_enabled():
            inputs[0].register_hook(back)

    hook = network.register_forward_pre_hook(forward)
    try:
        yield passes
    finally:
        hook.remove()


class Cost(NamedTuple):
    """Seconds of a forward pass, and of a forward and backward pass, of one image."""

    forward: float
    pair: float

    def of(self, passes: Passes) -> float:
        """Return the seconds of a number of passes."""
        return passes.forwards * self.forward + passes.backwards * (self.pair - self.forward)


class Limit:
    """Finds the cheapest pass of each kind, by order of memory and batch size, and times it on request.

    Args:
        net: network that maps normalized images to logits.
        images: images (B, C, H, W), which are repeated to fill a batch.
        batches: batch sizes to try.
        least: seconds for which short calls are repeated.
    """

    def __init__(self, net: nn.Module, images: Tensor, batches: tuple[int, ...], least: float = 0.5) -> None:
        self.least = least
        orders = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
        self.best: dict[str, tuple[str, int]] = {}
        self._calls: dict[str, Callable[[], Tensor]] = {}
        for kind, make in (("forward", _forward), ("pair", _pair)):
            calls = {}
            for name, order in orders.items():
                ordered = copy.deepcopy(net).eval().requires_grad_(False).to(memory_format=order)
                for batch in batches:
                    filled = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].contiguous(memory_format=order)
                    calls[name, batch] = make(ordered, filled)
            self.best[kind] = min(calls, key=lambda each: seconds(calls[each], least) / each[1])
            self._calls[kind] = calls[self.best[kind]]

    def sample(self) -> Cost:
        """Time a pass of each kind now."""
        return Cost(*(seconds(self._calls[kind]) / self.best[kind][1] for kind in ("forward", "pair")))


def _forward(net: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return net(images)

    return call


def _pair(net: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        at = images.detach().requires_grad_(True)
        return torch.autograd.grad(net(at)[:, 0].sum(), at)[0]

    return call
