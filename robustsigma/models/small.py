"""A small convolutional network that trains in a minute on two CPU cores."""

from __future__ import annotations

from torch import Tensor, nn


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with BatchNorm and ReLU, global average pooling, dropout, one linear layer.

    Args:
        channels: channels of the image (1 or 3).
        classes: number of logits.
        width: channels of the first convolution; later ones have 2, 4 and 4 times as many.
        strides: of the four convolutions. (2, 2, 2, 1) suits 64x64, (1, 2, 2, 1) 28x28, (1, 1, 2, 1) 8x8.
        dropout: probability before the linear layer.
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
        if classes < 2:
            raise ValueError(f"classes: expected at least 2, got {classes}")
        if channels < 1 or width < 1:
            raise ValueError(f"channels and width: expected positive numbers, got {channels} and {width}")
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        self.features = nn.Sequential(*(_block(widths[i], widths[i + 1], strides[i]) for i in range(4)))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(widths[-1], classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, channels, H, W)."""
        return self.head(self.features(images))
