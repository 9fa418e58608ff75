"""`with_same_padding`: TensorFlow's "SAME" padding, for networks whose weights come from TensorFlow."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.nn.modules.utils import _pair


def with_same_padding(net: nn.Module) -> nn.Module:
    """Let the layers of a network pad as TensorFlow would, in place. Names of layers and parameters stay.

    Changed are convolutions and max-poolings that pad and have a stride or an even kernel: a hook pads their input.
    Layers without padding are "VALID" in TensorFlow too.

    Args:
        net: network whose layers are changed.

    Example:
        >>> net = with_same_padding(torchvision.models.mobilenet_v2())
    """
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)) and not isinstance(layer.padding, str):
            strided = max(_pair(layer.stride)) > 1 or any(side % 2 == 0 for side in _pair(layer.kernel_size))
            if strided and max(_pair(layer.padding)) > 0:
                layer.padding = 0 if isinstance(layer, nn.MaxPool2d) else (0, 0)
                layer.register_forward_pre_hook(_pad)
    return net


def same_amounts(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the padding before and after a side, so that the output has ceil(side / stride) places.

    If the sum is odd, more is put after: symmetric padding would shift the pixels of even sides.
    """
    places = -(-side // stride)
    total = max((places - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    return total // 2, total - total // 2


def _pad(layer: nn.Module, inputs: Any) -> Any:
    assert isinstance(layer, (nn.Conv2d, nn.MaxPool2d))
    settings = (_pair(each) for each in (layer.kernel_size, layer.stride, layer.dilation))
    rows, columns = zip(*settings, strict=True)
    top, bottom = same_amounts(inputs[0].shape[-2], *rows)
    left, right = same_amounts(inputs[0].shape[-1], *columns)
    value = float("-inf") if isinstance(layer, nn.MaxPool2d) else 0.0
    return (F.pad(inputs[0], (left, right, top, bottom), value=value),)
