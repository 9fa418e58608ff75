"""The residual networks of small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine.validation import fail, integer


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.added // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """The residual network for 32x32 images (He et al., 2016, section 4.2): 0.27 million weights at depth 20.

    Shortcuts have no weights (their option A). Parameters are named as in the widely used files of
    github.com/akamaster/pytorch_resnet_cifar10, which fit.

    Args:
        channels: of the image.
        classes: number of logits.
        depth: layers with weights: 20, 32, 44, 56, 110 or another 6 n + 2.
    """

    def __init__(self, channels: int = 3, classes: int = 10, *, depth: int = 20) -> None:
        super().__init__()
        integer("channels", channels, 1)
        integer("classes", classes, 2)
        integer("depth", depth, 8)
        if depth % 6 != 2:
            raise fail("depth", "6 n + 2", depth)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = depth // 6
        self.layer1 = _layer(16, 16, blocks, 1)
        self.layer2 = _layer(16, 32, blocks, 2)
        self.layer3 = _layer(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _layer(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(inputs, outputs, stride)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))
