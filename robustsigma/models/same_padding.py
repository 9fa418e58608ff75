"""TensorFlow's "SAME" padding, which networks that come from there were trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def same_amounts(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return how much is put before and after a side, so that the output has ceil(side / stride) places.

    Where the sum is odd, more is put after: a symmetric padding would look at other pixels of even sides.
    """
    places = -(-side // stride)
    total = max((places - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    return total // 2, total - total // 2


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _padded(x: Tensor, layer: nn.Conv2d | nn.MaxPool2d, value: float) -> Tensor:
    settings = (_pair(each) for each in (layer.kernel_size, layer.stride, layer.dilation))
    rows, columns = zip(*settings, strict=True)
    top, bottom = same_amounts(x.shape[-2], *rows)
    left, right = same_amounts(x.shape[-1], *columns)
    return F.pad(x, (left, right, top, bottom), value=value)


class SameConv2d(nn.Conv2d):
    """A convolution that pads by the size of what comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K, ceil(H / stride), ceil(W / stride)) of (B, C, H, W)."""
        return super().forward(_padded(x, self, 0.0))


class SameMaxPool2d(nn.MaxPool2d):
    """A pooling that pads by the size of what comes in, with what is never the largest."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ceil(H / stride), ceil(W / stride)) of (B, C, H, W)."""
        return super().forward(_padded(x, self, float("-inf")))


def with_same_padding(net: nn.Module) -> nn.Module:
    """Exchange the layers whose padding TensorFlow would choose otherwise; names of parameters stay.

    These are convolutions and max-poolings that pad and have a stride. Those without padding are "VALID" there too,
    and for odd kernels without a stride both paddings are the same.

    Args:
        net: changed in place.

    Returns:
        The network.
    """
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)) and _differs(layer):
                setattr(parent, name, _same(layer))
    return net


def _differs(layer: nn.Conv2d | nn.MaxPool2d) -> bool:
    if isinstance(layer.padding, str) or max(_pair(layer.padding)) == 0:
        return False
    return max(_pair(layer.stride)) > 1 or any(side % 2 == 0 for side in _pair(layer.kernel_size))


def _same(layer: nn.Conv2d | nn.MaxPool2d) -> nn.Module:
    if isinstance(layer, nn.MaxPool2d):
        return SameMaxPool2d(layer.kernel_size, layer.stride, 0, layer.dilation)
    made = SameConv2d(
        layer.in_channels,
        layer.out_channels,
        _pair(layer.kernel_size),
        _pair(layer.stride),
        0,
        _pair(layer.dilation),
        layer.groups,
        layer.bias is not None,
        device="meta",  # the weights are those of the layer: none are drawn
    )
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)
