"""Counter-based noise: a value is a hash of (seed, counters, element), never the next item of a stream.

So it does not depend on batch size, order, compaction, chunking, device or number of processes, and no generator is
read or written. Only integer arithmetic, table look-ups and single correctly rounded float operations are used
(no logarithm or sine, whose last bits differ between devices), hence the same bits on CPU and GPU.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), applied to a key per row and a counter per word.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine.validation import choice, fail

Noise = Literal["bernoulli", "gaussian", "uniform", "perlin"]
NOISES: tuple[Noise, ...] = ("bernoulli", "gaussian", "uniform", "perlin")

_MASK64 = (1 << 64) - 1
_HASHED_AT_ONCE = 2**20  # pixel values; more leave a CPU's cache
_PIECES = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _mix(words: Tensor) -> Tensor:
    """Hash int64 words in place; in-place, since on big tensors fresh memory costs more than the arithmetic."""
    scratch = torch.empty_like(words)
    for bits, factor in ((30, _MIX1), (27, _MIX2), (31, 1)):
        torch.bitwise_right_shift(words, bits, out=scratch)
        scratch &= (1 << (64 - bits)) - 1  # the shift copies the sign bit
        words ^= scratch
        if factor != 1:
            words *= factor
    return words


def name_key(name: str) -> int:
    """Return a fixed int64 for a name, the same on every machine and Python."""
    return _signed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def fold(seeds: Tensor, *counters: int | str | Tensor) -> Tensor:
    """Return one key per row, int64 (R,), from seeds (R,) and any counters (ints, names, or tensors (R,))."""
    keys = _mix(seeds + _GOLDEN)
    for counter in counters:
        value = name_key(counter) if isinstance(counter, str) else counter
        keys = _mix((keys ^ value) + _GOLDEN)
    return keys


def image_seeds(run_seed: int, stage: str, condition: str, epoch: int, indices: Tensor) -> Tensor:
    """Return a seed per image, int64 (B,), from the run's seed, the stage, the condition, the epoch and its index."""
    start = torch.full_like(indices, run_seed, dtype=torch.int64)
    return fold(start, stage, condition, epoch, indices)


def seeds(seed: int | Tensor, images: Tensor) -> Tensor:
    """Return per-image seeds, int64 (B,), as every method of the engine takes them.

    Args:
        seed: a tensor of per-image seeds, which is returned as it is; or one int. An int is combined with a hash of
            each image's own pixels: the images of a batch draw independently, and an image draws the same in any batch,
            order, process or run. Equal images draw the same.
        images: float (B, C, H, W).

    Raises:
        ValueError: neither an int of 64 bits nor an int64 tensor (B,).
    """
    if isinstance(seed, Tensor) and seed.dtype == torch.int64 and seed.shape == (len(images),):
        return seed.to(images.device)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        value = int(seed)
        if not -(2**63) <= value < 2**63:
            raise fail("seed", "an int of 64 bits", repr(seed))
        return fold(torch.full((len(images),), value, device=images.device), *images.shape[1:], pixel_hash(images))
    got = f"{seed.dtype} {tuple(seed.shape)}" if isinstance(seed, Tensor) else repr(seed)
    raise fail("seed", f"an int or an int64 tensor ({len(images)},)", got)


def pixel_hash(images: Tensor) -> Tensor:
    """Return a hash of each image's pixels rounded to single precision, int64 (B,).

    It is the same in every floating dtype that holds the pixels exactly, on every device and with any strides; 0 and
    -0 are equal. Pairs of pixels are 64-bit words, which are summed with an odd weight for each place (multilinear
    hashing, Lemire and Kaser, 2014): a caller must tell images of different shapes apart.

    Args:
        images: float (B, C, H, W).
    """
    count = images[0].numel()
    weights = _words(torch.zeros(1, dtype=torch.int64, device=images.device), -(-count // 2))[0] | 1
    hashes = []
    for part in images.detach().split(max(1, _HASHED_AT_ONCE // count)):
        flat = part.float().contiguous().flatten(1) + 0.0  # makes -0 0
        pairs = F.pad(flat, (0, count % 2)).view(torch.int64)
        # Numbers such as 0 and 1 differ in high bits only, which a product would never bring down.
        pairs ^= pairs >> 41
        hashes.append(pairs.mul_(weights).sum(1))
    return torch.cat(hashes)


def _words(keys: Tensor, count: int) -> Tensor:
    """Return `count` independent 64-bit words for each key, int64 (R, count)."""
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _GOLDEN
    return _mix(keys[:, None] + counters)


def _pieces(keys: Tensor, count: int, bits: Literal[8, 16, 32]) -> Tensor:
    """Return `count` integers with `bits` random bits for each key, int32 (R, count); those above 8 bits are signed."""
    if not len(keys):  # a part of a mixture that no image of the batch fell to; its strides forbid the view
        return torch.empty(0, count, dtype=torch.int32, device=keys.device)
    words = _words(keys, -(-count * bits // 64))
    # Memory read as shorter integers: the little-endian split of a word, as on every machine PyTorch is built for.
    return words.view(_PIECES[bits])[:, :count].int()


def _signs_by_table(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the eight signs of each byte, (R, n, 8), from int32 (R, n)."""
    return F.embedding(octets, _sign_table(octets.device).to(dtype))


def _signs_by_shifts(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same."""
    bits = octets.to(torch.uint8)[..., None] >> torch.arange(8, dtype=torch.uint8, device=octets.device)
    return (bits & 1).to(dtype).mul_(2).sub_(1)


@lru_cache(maxsize=8)
def _sign_table(device: torch.device) -> Tensor:
    """Return the eight signs of each byte, int8 (256, 8)."""
    with torch.inference_mode(False):
        bits = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
        return (2 * bits - 1).to(torch.int8)


@lru_cache(maxsize=8)
def _normal_table(device: torch.device) -> Tensor:
    """Return the 2^16 mid-quantiles of the normal distribution, scaled to unit variance, float32."""
    with torch.inference_mode(False):
        steps = (torch.arange(2**16, dtype=torch.float64, device="cpu") + 0.5) / 2**16
        table = torch.special.ndtri(steps)
        return (table / table.square().mean().sqrt()).float().to(device)


def _unflatten(flat: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return flat.reshape(len(flat), *shape).to(dtype)


def bernoulli(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return independent signs, -1 or +1 with equal probability, (R, *shape)."""
    count = math.prod(shape)
    octets = _pieces(keys, -(-count // 8), 8)
    # On a GPU the table takes several times as long as the arithmetic, on a CPU it is the other way round.
    made = _signs_by_table if keys.device.type == "cpu" else _signs_by_shifts
    return _unflatten(made(octets, dtype).flatten(1)[:, :count], shape, dtype)


def uniform(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return independent uniform values in (0, 1), odd multiples of 2^-24, (R, *shape)."""
    steps = (_pieces(keys, math.prod(shape), 32) >> 9) & (2**23 - 1)
    return _unflatten((steps.float() + 0.5) * 2.0**-23, shape, dtype)


def gaussian(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return independent standard normal values, (R, *shape): the sum of two table look-ups over sqrt 2."""
    at = _pieces(keys, 2 * math.prod(shape), 16) & (2**16 - 1)
    pairs = _normal_table(keys.device).index_select(0, at.flatten()).view(len(at), math.prod(shape), 2)
    return _unflatten((pairs[..., 0] + pairs[..., 1]) * math.sqrt(0.5), shape, dtype)


def _lattice(length: int, offset: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Return each pixel's lattice index, int64 (R, length), and its place between two points, in (0, 1)."""
    at = torch.arange(length, device=offset.device) + offset[:, None].long()
    # By a tensor: GPUs multiply by a number's inverse instead, which rounds otherwise.
    return at // scale, ((at % scale).float() + 0.5) / torch.full((), scale, dtype=torch.float32, device=at.device)


def _fade(t: Tensor) -> Tensor:
    """Perlin's smooth step 6t^5 - 15t^4 + 10t^3 (Perlin, 2002)."""
    return t * t * t * (t * (t * 6 - 15) + 10)


def perlin(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype, scale: int = 8) -> Tensor:
    """Return gradient noise (Perlin, 1985), zero-mean with values in [-1, 1], (R, C, H, W).

    Args:
        keys: int64 (R,).
        shape: (C, H, W); channels are independent.
        dtype: dtype of the result.
        scale: pixels between two lattice points.
    """
    channels, height, width = shape
    # The lattice starts at a random offset, else every picture would be zero at the same places.
    offset = _pieces(fold(keys, "offset"), 2, 32) % scale
    iy, ty = _lattice(height, offset[:, 0], scale)
    ix, tx = _lattice(width, offset[:, 1], scale)
    rows, columns = (-(-(n + scale - 1) // scale) + 1 for n in (height, width))
    corner = (_pieces(keys, channels * rows * columns, 8) & 15).reshape(-1, channels, rows, columns)
    # 16 directions, so that no axis shows; a table, because sines differ in their last bit between devices.
    angles = [2 * math.pi * (i + 0.5) / 16 for i in range(16)]
    slope_y, slope_x = (
        torch.tensor([turn(a) for a in angles], dtype=torch.float32, device=keys.device)[corner]
        for turn in (math.sin, math.cos)
    )
    tx, ty = tx[:, None, None, :], ty[:, None, :, None]
    left = ix[:, None, None, :].expand(-1, channels, rows, -1)
    # Along x first, on the few lattice rows; along y the value is then linear in the two.
    wx = _fade(tx)
    part_y = slope_y.gather(3, left) * (1 - wx) + slope_y.gather(3, left + 1) * wx
    part_x = slope_x.gather(3, left) * tx * (1 - wx) + slope_x.gather(3, left + 1) * (tx - 1) * wx
    wy = _fade(ty)
    above = iy[:, None, :, None].expand(-1, channels, -1, width)
    top = part_y.gather(2, above) * ty + part_x.gather(2, above)
    bottom = part_y.gather(2, above + 1) * (ty - 1) + part_x.gather(2, above + 1)
    # |value| <= sqrt(1/2) for unit slopes.
    return ((top * (1 - wy) + bottom * wy) * math.sqrt(2)).to(dtype)


def pattern(kind: Noise, keys: Tensor, shape: tuple[int, int, int], dtype: torch.dtype, *, scale: int = 8) -> Tensor:
    """Return a zero-mean pattern, (R, C, H, W); `scale` is Perlin's.

    Standard deviations: "bernoulli" and "gaussian" 1, "uniform" (within [-1, 1]) 0.58, "perlin" 0.31.
    """
    choice("noise", kind, NOISES)
    if kind == "bernoulli":
        return bernoulli(keys, shape, dtype)
    if kind == "gaussian":
        return gaussian(keys, shape, dtype)
    if kind == "uniform":
        return (uniform(keys, shape, torch.float32) * 2 - 1).to(dtype)
    return perlin(keys, shape, dtype, scale)
