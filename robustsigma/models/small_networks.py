"""`SmallCNN`, `CifarResNet` and `CifarResNet18`: networks for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robustsigma.engine.validation import fail, integer


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, global average pooling, dropout and one linear layer.

    It trains on 64x64 images in about a minute on two CPU cores. Inputs are normalized images: wrap the network in a
    `Classifier`, which normalizes images in [0, 1].

    Args:
        channels: channels of the image.
        classes: number of logits, at least 2.
        width: channels of the first convolution; the others have 2, 4 and 4 times as many.
        strides: strides of the four convolutions. (2, 2, 2, 1) suits 64x64 pixels, (1, 2, 2, 1) 28x28, (1, 1, 2, 1)
            8x8.
        dropout: probability of dropout before the linear layer.

    Example:
        >>> SmallCNN(1, 10, strides=(1, 2, 2, 1))(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        width: int = 16,
        strides: tuple[int, int, int, int] = (2, 2, 2, 1),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        integer("channels", channels, 1)
        integer("classes", classes, 2)
        integer("width", width, 1)
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(widths[i], widths[i + 1], 3, stride=strides[i], padding=1, bias=False),
                    nn.BatchNorm2d(widths[i + 1]),
                    nn.ReLU(),
                )
                for i in range(4)
            )
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of normalized images (B, channels, H, W)."""
        return self.head(self.features(images))


class CifarResNet(nn.Module):
    """The residual network for 32x32 images of He et al., 2016, section 4.2: 0.27 million weights at depth 20.

    It has three groups of (depth - 2) / 6 blocks with 16, 32 and 64 channels. Shortcuts have no weights (their option
    A). Parameters have the names of the files of github.com/akamaster/pytorch_resnet_cifar10, which fit. Inputs are
    normalized images: wrap the network in a `Classifier`, which normalizes images in [0, 1].

    Args:
        channels: channels of the image.
        classes: number of logits, at least 2.
        depth: number of layers with weights: 20, 32, 44, 56, 110 or another 6 n + 2.

    Example:
        >>> CifarResNet(depth=20)(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(self, channels: int = 3, classes: int = 10, *, depth: int = 20) -> None:
        super().__init__()
        integer("channels", channels, 1)
        integer("classes", classes, 2)
        integer("depth", depth, 8)
        if depth % 6 != 2:
            raise fail("depth", "6 n + 2", depth)
        blocks = depth // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _residual_group(16, 16, blocks, 1)
        self.layer2 = _residual_group(16, 32, blocks, 2)
        self.layer3 = _residual_group(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of normalized images (B, channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class CifarResNet18(nn.Module):
    """The ResNet-18 for 32x32 images that papers on adversarial training use: 11.2 million weights.

    It is torchvision's with a first convolution of 3x3 and stride 1, and without max pooling. Inputs are normalized
    images: wrap the network in a `Classifier`, which normalizes images in [0, 1].

    Args:
        channels: channels of the image.
        classes: number of logits, at least 2.

    Example:
        >>> CifarResNet18()(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 10])
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        integer("channels", channels, 1)
        integer("classes", classes, 2)
        from torchvision.models import resnet18  # here, as it takes a second

        self.net = resnet18(num_classes=classes)
        self.net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.net.maxpool = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of normalized images (B, channels, H, W)."""
        return self.net(images)


class _ResidualBlock(nn.Module):
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


def _residual_group(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = _ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(_ResidualBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
