"""The networks that are measured, the amount of work for each, and their images.

Weights are random, since a pass costs the same with any weights; BatchNorm gets the statistics of noise images, so that
there is something to fold. Images are the built-in baggage scans.
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
    """The amount of work for a network.

    Args:
        size: height and width of the images.
        classes: number of logits.
        batches: batch sizes among which the best is found.
        images: number of images for SIGMA, and for methods with one row of a batch per image.
        few: number of images for metrics, and for methods with a batch of many points per image.
        single: number of images for peers that take one at a time.
        paths: number of SIGMA's paths.
        walk: steps of a walk.
        steps: points of a path.
        training: batch size of a training step.
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
    """Return the amount of work for a network on a device."""
    return (_FAST if fast else _CPU if device.type == "cpu" else _GPU)[name]


def build(name: str, of: Scale, device: torch.device) -> nn.Module:
    """Return a network in eval mode; the global generator is restored.

    The ViT is a ViT-B/16, on a CPU one of the same depth and a quarter of the width (DeiT-tiny).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "small":
            net: nn.Module = SmallCNN(3, of.classes)
        elif name == "resnet18":
            net = torchvision.models.resnet18(num_classes=of.classes)
        elif of.size == 224 and device.type != "cpu":
            net = torchvision.models.vit_b_16(num_classes=of.classes)
        else:
            layers, heads, width = (12, 3, 192) if of.size == 224 else (2, 2, 16)
            net = torchvision.models.VisionTransformer(
                of.size, 16, layers, heads, width, 4 * width, num_classes=of.classes
            )
        if name == "vit":
            nn.init.normal_(net.heads.head.weight, std=0.1)  # torchvision's zeros would make every gradient zero
        else:
            with torch.no_grad():
                for step in range(3):
                    keys = noise.fold(torch.arange(8), step)
                    net.train()(noise.gaussian(keys, (3, of.size, of.size), torch.float32))
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
        name: name of the network.
        scale: amount of work.
        classifier: the network as robustsigma uses it.
        plain: the network as its peers use it.
        images: images (B, C, H, W).
        target: predicted classes (B,).
        seeds: seeds (B,).
    """

    name: str
    scale: Scale
    classifier: Classifier
    plain: Plain
    images: Tensor
    target: Tensor
    seeds: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.images.device

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
    net = build(name, of, device)
    images = Baggage(size=of.size, train=1, val=1, test=of.images).split("test").batch(range(of.images))[0].to(device)
    plain = Plain(net).to(device).eval()
    with torch.inference_mode():
        target = plain(images).argmax(1)
    seeds = torch.arange(100, 100 + of.images, device=device)
    return Case(name, of, Classifier(net, mean=MEAN, std=STD), plain, images, target.clone(), seeds)
