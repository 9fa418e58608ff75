"""What pixels are replaced by when their information is taken away."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from robustsigma.engine.metrics.base import MetricContext
from robustsigma.engine.validation import choice

Substrate = Literal["blur", "mean", "black"]
SUBSTRATES: tuple[Substrate, ...] = get_args(Substrate)

_SIDE, _STD = 11, 5.0  # of RISE's blur


def substrate(name: Substrate, subject: MetricContext) -> Tensor:
    """Return what each image is without information, (B, C, H, W).

    "black" is the low end of the range. "mean" is the zero of the normalized image, the network's mean color, which
    RISE deletes to (Petsiuk et al., 2018). "blur" is RISE's: a convolution of the normalized image with an 11 x 11
    window of standard deviation 5, borders filled with the mean color.
    """
    choice("substrate", name, SUBSTRATES)
    return subject.shared(("substrate", name), lambda: _make(name, subject))


def _make(name: Substrate, subject: MetricContext) -> Tensor:
    images, bounds = subject.images, subject.classifier.bounds
    if name == "black":
        return torch.full_like(images, bounds.low)
    mean = subject.classifier.mean.to(images).clamp(*bounds).expand(images.shape[1], 1, 1)
    if name == "mean":
        return mean.expand_as(images).contiguous()
    return (_blur(images - mean) + mean).clamp(*bounds)


def _blur(images: Tensor) -> Tensor:
    line, channels = _window().to(images), images.shape[1]
    across = F.conv2d(images, line.expand(channels, 1, 1, -1), padding=(0, _SIDE // 2), groups=channels)
    return F.conv2d(across, line[:, None].expand(channels, 1, -1, 1), padding=(_SIDE // 2, 0), groups=channels)


@lru_cache(maxsize=1)
def _window() -> Tensor:
    """Return one line of RISE's window, which is its product with itself.

    Nearly flat, since the Gaussian is reflected at the borders of its 11 pixels.
    """
    delta = np.zeros(_SIDE)
    delta[_SIDE // 2] = 1
    with torch.inference_mode(False):
        return torch.from_numpy(gaussian_filter1d(delta, _STD))
