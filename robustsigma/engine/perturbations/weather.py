"""Snow and frost, drawn on the images' device.

The steps and the numbers of snow are those of CIFAR-10-C (Hendrycks and Dietterich, 2019). Frost is drawn from noise:
theirs is cut from photographs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import noise

# For severities 1 to 5: mean and std of the flakes, their zoom, the brightness below which there is none, length and
# spread of their streaks, and the weight of the image.
_SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
_FROST = (0.3, 0.45, 0.6, 0.75, 0.9)  # how opaque the ice is at most
_ICE = (0.85, 0.95, 1.0)  # its color
_FINEST = 2  # pixels between the lattice points of the finest crystals


def snow(images: Tensor, keys: Tensor, severity: int, scale: float) -> Tensor:
    """Return images (B, C, H, W) with flakes that fall at a random slant, and paler.

    Args:
        images: in [0, 1], of 1 or 3 channels.
        keys: int64 (B,), of the draws.
        severity: 1 to 5.
        scale: the images' side over 32; lengths grow with its root where it is above 1.
    """
    mean, std, zoom, threshold, length, spread, kept = _SNOW[severity - 1]
    # As in ImageNet-C, whose flakes and streaks are less than seven times as long as those of CIFAR-10-C.
    zoom, length, spread = (value * max(1.0, scale) ** 0.5 for value in (zoom, length, spread))
    height, width = images.shape[-2:]
    coarse = (1, math.ceil(height / zoom), math.ceil(width / zoom))
    flakes = mean + std * noise.gaussian(noise.fold(keys, "flakes"), coarse, torch.float32)
    flakes = F.interpolate(flakes, (height, width), mode="bilinear").clamp(0, 1)
    flakes = _streaked(flakes.where(flakes >= threshold, 0), keys, round(length), spread).to(images.dtype)
    pale = images.mean(1, keepdim=True) * 1.5 + 0.5
    return (kept * images + (1 - kept) * images.maximum(pale) + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)


def _streaked(flakes: Tensor, keys: Tensor, length: int, spread: float) -> Tensor:
    """Return flakes (B, 1, H, W) with half a Gaussian of motion blur, downward by 45 to 135 degrees."""
    angle = math.pi * (0.25 + 0.5 * noise.uniform(noise.fold(keys, "slant"), (), torch.float32))
    steps = torch.arange(length + 1, dtype=torch.float32, device=flakes.device)
    falling = (-0.5 * (steps / spread) ** 2).exp()
    height, width = flakes.shape[-2:]
    grid = F.affine_grid(torch.eye(2, 3, device=flakes.device)[None], [1, 1, height, width], align_corners=False)
    pace = torch.stack([2 * angle.cos() / width, 2 * angle.sin() / height], -1)[:, None, None]  # a pixel
    result = torch.zeros_like(flakes)
    for step, weight in enumerate((falling / falling.sum()).tolist()):
        moved = F.grid_sample(flakes, grid - step * pace, padding_mode="reflection", align_corners=False)
        result += weight * moved
    return result


def frost(images: Tensor, keys: Tensor, severity: int, scale: float) -> Tensor:
    """Return images (B, C, H, W) behind crystals of ice.

    Args:
        images: in [0, 1], of 1 or 3 channels.
        keys: int64 (B,), of the draws.
        severity: 1 to 5.
        scale: the images' side over 32; lengths grow with it where it is above 1.
    """
    size = (1, *images.shape[-2:])
    crystals = torch.zeros(len(images), *size, device=images.device)
    for octave in range(3):
        place = round(_FINEST * max(1.0, scale)) * 2**octave
        drawn = noise.perlin(noise.fold(keys, "frost", octave), size, torch.float32, place)
        crystals += (1 - 2 * drawn.abs()).clamp(0, 1) ** 2 * 2.0 ** (octave - 2)  # bright where the noise is zero
    ice = torch.tensor(_ICE if images.shape[1] == 3 else _ICE[1:2], dtype=images.dtype, device=images.device)
    return images.lerp(
        ice[:, None, None].expand_as(images), _FROST[severity - 1] * crystals.clamp(0, 1).to(images.dtype)
    )
