"""How far an image was moved from its original, one value per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rmse(x: Tensor, original: Tensor) -> Tensor:
    """Return the root mean squared difference (B,) of images (B, C, H, W), in pixel units."""
    return (x - original).square().flatten(1).mean(1).sqrt()


def linf(x: Tensor, original: Tensor) -> Tensor:
    """Return the largest absolute difference (B,), in pixel units."""
    return (x - original).abs().flatten(1).amax(1)


def ssim(x: Tensor, original: Tensor, *, data_range: float = 1.0, sigma: float = 1.5) -> Tensor:
    """Return the structural similarity (B,), 1 for equal images (Wang et al., 2004; Gaussian window).

    The window is 11 pixels wide, or the largest odd number that fits a smaller image; borders without a full window
    are left out, and channels are averaged.
    """
    side = min(11, *x.shape[-2:])
    side -= 1 - side % 2
    offsets = torch.arange(side, dtype=torch.float64, device=x.device) - side // 2
    line = torch.exp(-offsets.square() / (2 * sigma**2))
    line = line / line.sum()
    channels = x.shape[1]
    window = (line[:, None] * line).expand(channels, 1, side, side)
    a, b = x.double(), original.double()

    def blur(images: Tensor) -> Tensor:
        return F.conv2d(images, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1).to(x.dtype)
