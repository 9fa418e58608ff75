"""Distances between perturbed images and their originals, one value per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustsigma.engine.validation import fail


def _same_shape(x: Tensor, original: Tensor) -> None:
    if x.ndim != 4 or x.shape != original.shape:
        raise fail("x", f"(B, C, H, W), as original, which has shape {tuple(original.shape)}", tuple(x.shape))


def _weighted_sum(parts: list[Tensor], weights: list[float]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        total.add_(part, alpha=weight)
    return total


def rmse(x: Tensor, original: Tensor) -> Tensor:
    """Return the root mean squared difference (B,) of images, in pixel units.

    Args:
        x: float (B, C, H, W).
        original: images of the same shape.

    Raises:
        ValueError: another shape.
    """
    _same_shape(x, original)
    return (x - original).square().flatten(1).mean(1).sqrt()


def linf(x: Tensor, original: Tensor) -> Tensor:
    """Return the largest absolute difference (B,), in pixel units.

    Args:
        x: float (B, C, H, W).
        original: images of the same shape.

    Raises:
        ValueError: another shape.
    """
    _same_shape(x, original)
    return (x - original).abs().flatten(1).amax(1)


def ssim(x: Tensor, original: Tensor, *, data_range: float = 1.0, sigma: float = 1.5) -> Tensor:
    """Return the structural similarity (B,), 1 for equal images (Wang et al., 2004; Gaussian window).

    The window is 11 pixels wide, or the largest odd number that fits a smaller image; borders without a full window
    are left out, and channels are averaged.

    Args:
        x: float (B, C, H, W).
        original: images of the same shape.
        data_range: the highest value less the lowest that a pixel may have.
        sigma: standard deviation of the window, in pixels.

    Raises:
        ValueError: another shape.
    """
    _same_shape(x, original)
    side = min(11, *x.shape[-2:])
    side -= 1 - side % 2
    weights = [math.exp(-((k - side // 2) ** 2) / (2 * sigma**2)) for k in range(side)]
    a, b = x.double(), original.double()

    def blur(images: Tensor) -> Tensor:
        # The window is a product of two lines: 22 products a pixel instead of 121, and shifts are faster than conv2d.
        for axis in (2, 3):
            length = images.shape[axis] - side + 1
            shifted = [images.narrow(axis, k, length) for k in range(side)]
            images = _weighted_sum(shifted, [weight / sum(weights) for weight in weights])
        return images

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1).to(x.dtype)
