"""The networks that are measured, how much is asked of each, and what they are shown.

Weights are random, since a pass costs the same with any; BatchNorm's statistics are those of noise images, since
folding must have something to fold. Images are the embedded baggage scans.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torchvision
from torch import Tensor, nn

from robustsigma import Classifier
from robustsigma.data import Baggage
from robustsigma.engine import noise
from robustsigma.models import SmallCNN

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETS = ("small", "resnet18", "vit")


@dataclass(frozen=True)
class Scale:
    """How much is asked of a network.

    Args:
        size: side of the images.
        classes: logits.
        batches: sizes among which the best is found.
        images: given to methods whose batch is one image a row, and to SIGMA.
        few: images given to methods that make their batch of many points an image, and to metrics.
        single: images given to peers that take one at a time.
        paths: of SIGMA.
        walk: steps of a walk.
        steps: points of a path.
        training: images in a batch of a training step.
    """

    size: int
    classes: int
    batches: tuple[int, ...]
    images: int
    few: int
    single: int
    paths: int = 7
    walk: int = 4
    steps: int = 16
    training: int = 16


_CPU = {
    "small": Scale(64, 10, (16, 64, 128, 256), 16, 8, 4, walk=12, steps=32, training=64),
    "resnet18": Scale(224, 1000, (8, 13, 28), 16, 4, 1, walk=2),
    "vit": Scale(224, 1000, (8, 13, 28), 8, 2, 1, walk=2, steps=14),
}
_GPU = {
    "small": Scale(64, 10, (64, 256, 1024, 2048), 128, 64, 4, walk=20, steps=32, training=256),
    "resnet18": Scale(224, 1000, (64, 128, 256, 445), 128, 64, 2, walk=5, steps=32, training=64),
    "vit": Scale(224, 1000, (32, 64, 128, 256), 32, 16, 1, walk=3, steps=32, training=32),
}
_FAST = {
    "small": Scale(16, 5, (2, 4), 3, 2, 1, paths=2, walk=2, steps=3, training=12),
    "resnet18": Scale(32, 7, (2,), 2, 2, 1, paths=2, walk=1, steps=2, training=4),
    "vit": Scale(32, 7, (2,), 2, 2, 1, paths=2, walk=1, steps=2, training=4),
}


def scale(name: str, device: torch.device, *, fast: bool) -> Scale:
    """Return how much is asked of a network on a device."""
    return (_FAST if fast else _CPU if device.type == "cpu" else _GPU)[name]


def _vit(found: Scale, device: torch.device) -> nn.Module:
    """Return ViT-B/16, or on a CPU one of its depth and a quarter of its width (DeiT's "tiny")."""
    if found.size == 224 and device.type != "cpu":
        return torchvision.models.vit_b_16(num_classes=found.classes)
    layers, heads, width = (12, 3, 192) if found.size == 224 else (2, 2, 16)
    return torchvision.models.VisionTransformer(
        found.size, 16, layers, heads, width, 4 * width, num_classes=found.classes
    )


def build(name: str, found: Scale, device: torch.device) -> nn.Module:
    """Return a network in eval mode; the global generator is given back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "small":
            net: nn.Module = SmallCNN(3, found.classes)
        elif name == "resnet18":
            net = torchvision.models.resnet18(num_classes=found.classes)
        else:
            net = _vit(found, device)
            nn.init.normal_(net.heads.head.weight, std=0.1)  # torchvision starts it at 0, where nothing has a gradient
        if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
            keys = torch.arange(8)
            with torch.no_grad():
                for step in range(3):
                    net.train()(noise.gaussian(noise.fold(keys, step), (3, found.size, found.size), torch.float32))
    return net.to(device).eval().requires_grad_(False)


class Plain(nn.Module):
    """A network as its users call it: normalisation, then the network as it is."""

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
    """A network and what it is shown.

    Attributes:
        name: of the network.
        scale: how much is asked.
        net: from normalised images to logits.
        classifier: as robustsigma sees it.
        plain: as its peers see it.
        images: (B, C, H, W).
        target: (B,) the predicted classes.
        seeds: (B,).
    """

    name: str
    scale: Scale
    net: nn.Module
    classifier: Classifier
    plain: Plain
    images: Tensor
    target: Tensor
    seeds: Tensor

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.images.device

    def first(self, count: int) -> Case:
        """Return the case with fewer images."""
        return replace(self, images=self.images[:count], target=self.target[:count], seeds=self.seeds[:count])

    def exact(self) -> Case:
        """Return the case in double precision, with as few images as those peers get that take one at a time."""
        classifier, plain = (copy.deepcopy(module).double() for module in (self.classifier, self.plain))
        few = self.first(self.scale.single)
        return replace(few, net=plain.net, classifier=classifier, plain=plain, images=few.images.double())


def case(name: str, device: torch.device, *, fast: bool) -> Case:
    """Return a network with its images."""
    found = scale(name, device, fast=fast)
    net = build(name, found, device)
    images = Baggage(size=found.size, train=1, val=1, test=found.images).split("test").batch(range(found.images))[0]
    images = images.to(device)
    plain = Plain(net).to(device).eval()
    with torch.inference_mode():
        target = plain(images).argmax(1)
    seeds = torch.arange(100, 100 + found.images, device=device)
    return Case(name, found, net, Classifier(net, mean=MEAN, std=STD), plain, images, target.clone(), seeds)
