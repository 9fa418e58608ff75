"""Counter-based noise: its statistics, its bits, and that nothing but seed and counters decides them."""

from __future__ import annotations

import math

import cases
import numpy as np
import pytest
import torch

from robustsigma.engine import noise

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
STD = {"bernoulli": 1.0, "gaussian": 1.0, "uniform": 3**-0.5, "perlin": 0.305}
WHITE = ("bernoulli", "gaussian", "uniform")


def keys(rows: int, *counters: int | str) -> torch.Tensor:
    return noise.fold(torch.arange(rows), *counters)


def draw(kind: str, of: torch.Tensor, shape=(3, 32, 32), dtype=torch.float32, **kwargs) -> torch.Tensor:
    return noise.pattern(kind, of, shape, dtype, **kwargs)


def mix(word: int) -> int:
    """SplitMix64's finaliser in Python's unbounded integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def words(seed: int, counters: tuple[int, ...], count: int) -> list[int]:
    key = mix((seed + GOLDEN) & MASK)
    for counter in counters:
        key = mix(((key ^ (counter & MASK)) + GOLDEN) & MASK)
    return [mix((key + i * GOLDEN) & MASK) for i in range(1, count + 1)]


def test_hash_is_published_splitmix64():
    """The first outputs of SplitMix64 from seed 0, as published with its reference code."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    got = [noise.fold(torch.tensor([noise._signed(i * GOLDEN)])).item() & MASK for i in range(3)]
    assert got == published


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789])
def test_golden_bits(seed):
    of = noise.fold(torch.tensor([seed]), 7, -3)
    expected = words(seed & MASK, (7, -3), 8)
    bits = [(word >> k) & 1 for word in expected for k in range(64)]
    assert noise.bernoulli(of, (500,), torch.float32)[0].tolist() == [2.0 * bit - 1 for bit in bits[:500]]
    halves = [(word >> shift) & 0xFFFFFFFF for word in expected for shift in (0, 32)]
    assert noise.uniform(of, (15,), torch.float32)[0].tolist() == [((h >> 9) + 0.5) / 2**23 for h in halves[:15]]
    steps = torch.tensor([((word >> shift) & 0xFFFF) for word in expected for shift in (0, 16, 32, 48)])
    quantiles = torch.special.ndtri((steps.double() + 0.5) / 2**16).reshape(-1, 2).sum(1) / math.sqrt(2)
    assert noise.gaussian(of, (16,), torch.float32)[0].double() == pytest.approx(quantiles.numpy(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_signs_are_one(dtype):
    octets = torch.arange(256, dtype=torch.int32).reshape(4, 64)
    table, shifts = noise._signs_by_table(octets, dtype), noise._signs_by_shifts(octets, dtype)
    assert torch.equal(table, shifts)
    assert table.dtype == shifts.dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("kind", noise.NOISES)
def test_cuda_gives_the_same_bits(kind):
    of = noise.fold(torch.arange(9) * 7919, "gpu", 3)
    assert torch.equal(draw(kind, of.cuda(), (3, 37, 53)).cpu(), draw(kind, of, (3, 37, 53)))
    scaled = [noise.pattern(kind, keys, (3, 37, 53), torch.float32, scale=6).cpu() for keys in (of.cuda(), of)]
    assert torch.equal(*scaled)
    indices = torch.arange(5)
    wanted = noise.image_seeds(1, "fit", "c", 2, indices)
    assert torch.equal(noise.image_seeds(1, "fit", "c", 2, indices.cuda()).cpu(), wanted)


@pytest.mark.parametrize("kind", noise.NOISES)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 1), (4, 5, 7), (2, 28, 10)])
def test_rows_do_not_depend_on_the_batch(kind, shape):
    of = keys(6, "batch")
    whole = draw(kind, of, shape)
    assert whole.shape == (6, *shape)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(draw(kind, of[order], shape), whole[order])
    assert torch.equal(torch.cat([draw(kind, part, shape) for part in of.split(4)]), whole)
    assert torch.equal(draw(kind, of[2:3], shape)[0], whole[2])


@pytest.mark.parametrize("kind", noise.NOISES)
@pytest.mark.parametrize("shape", [(1,), (3, 8, 8)])
def test_no_rows_get_no_noise(kind, shape):
    if kind == "perlin" and len(shape) < 3:
        pytest.skip("a pattern of images")
    assert draw(kind, keys(5)[:0], shape).shape == (0, *shape)


@pytest.mark.parametrize("kind", noise.NOISES)
def test_dtypes_are_roundings_of_the_same_draw(kind):
    wide, single = draw(kind, keys(2), dtype=torch.float64), draw(kind, keys(2))
    assert wide.dtype == torch.float64
    assert torch.allclose(wide.float(), single, atol=1e-6, rtol=0)
    assert torch.equal(draw(kind, keys(2), dtype=torch.bfloat16), single.bfloat16())


@pytest.mark.parametrize("kind", noise.NOISES)
def test_works_and_agrees_in_any_context(kind):
    plain = draw(kind, keys(2, "context"))
    with torch.inference_mode():
        assert torch.equal(draw(kind, keys(2, "context")), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw(kind, keys(2, "context")), plain)


@pytest.mark.parametrize("kind", WHITE)
def test_balance_and_variance(kind):
    values = draw(kind, keys(64, "moments")).double()
    n = values.numel()
    assert values.mean().abs() < 5 * STD[kind] / n**0.5
    fourth = values.pow(4).mean()
    error = ((fourth - STD[kind] ** 4).clamp(min=0) / n) ** 0.5
    assert (values.square().mean() - STD[kind] ** 2).abs() <= 5 * error + 1e-9
    # Each place of the picture is balanced over images too.
    places = draw(kind, keys(4096, "places"), (1, 4, 4)).double().mean(0)
    assert places.abs().max() < 5 * STD[kind] / 4096**0.5


def test_distributions():
    n = 64 * 3 * 32 * 32
    assert set(draw("bernoulli", keys(64)).unique().tolist()) == {-1.0, 1.0}
    for kind, cdf in (("gaussian", torch.special.ndtr), ("uniform", lambda v: (v + 1) / 2)):
        ranked = cdf(draw(kind, keys(64)).double().flatten().sort().values)
        steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        # Kolmogorov-Smirnov at the 1e-6 level.
        assert (ranked - steps).abs().max() < 2.7 / n**0.5, kind


@pytest.mark.parametrize("kind", WHITE)
def test_independence_across_seed_path_step_and_element(kind):
    """Correlations of neighbors along each counter stay within 5 standard errors."""
    seeds = torch.arange(16).repeat_interleave(16)
    paths = torch.arange(4).repeat_interleave(4).repeat(16)
    steps = torch.arange(4).repeat(64)
    of = noise.fold(noise.fold(seeds, "sigma", paths), steps)
    assert len(of.unique()) == 256
    cube = draw(kind, of, (3, 16, 16)).double().reshape(16, 4, 4, 3, 16, 16) / STD[kind]
    for axis in range(6):
        for lag in (1, 2, 3):
            if lag < cube.shape[axis]:
                a = cube.narrow(axis, 0, cube.shape[axis] - lag)
                b = cube.narrow(axis, lag, cube.shape[axis] - lag)
                assert (a * b).mean().abs() < 5 / a.numel() ** 0.5, (axis, lag)
    # Swapped counters give other bits: (path 1, step 2) is not (path 2, step 1).
    flat = cube.flatten(3)
    assert not torch.equal(flat[:, 1, 2], flat[:, 2, 1])


def test_every_pair_of_rows_is_uncorrelated():
    rows = draw("bernoulli", keys(200, 0), (3, 32, 32)).flatten(1).double()
    correlation = rows @ rows.T / rows.shape[1]
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 6 / rows.shape[1] ** 0.5


@pytest.mark.parametrize("kind", WHITE)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_no_pattern_in_a_picture(kind, seed):
    """A 256 x 256 picture is white: flat spectrum, and rows, columns and lags as independent values have them."""
    side = 256
    picture = draw(kind, noise.fold(torch.tensor([seed]), "picture"), (1, side, side))[0, 0].double() / STD[kind]
    power = torch.fft.fft2(picture).abs().square() / side**2
    power[0, 0] = 0
    # For white noise the powers are exponential with mean 1: the largest of side^2 / 2 exceeds t with
    # probability side^2 / 2 * exp(-t).
    assert power.max() < math.log(side**2 / 2) + 11
    assert (power.mean() - 1).abs() < 5 * (2 / side**2) ** 0.5
    assert power.mean(0)[1:].sub(1).abs().max() < 6 * (2 / side) ** 0.5
    assert power.mean(1)[1:].sub(1).abs().max() < 6 * (2 / side) ** 0.5
    for axis in (0, 1):
        assert picture.mean(axis).abs().max() < 5.5 / side**0.5
    for dy, dx in [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (0, 8), (8, 0), (0, 64), (16, 16), (0, 128)]:
        lagged = picture * picture.roll((dy, dx), (0, 1))
        assert lagged.mean().abs() < 5 * 2**0.5 / side, (dy, dx)


@pytest.mark.parametrize("scale", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 7, 10, 28])
def test_perlin_fits_any_size(scale, size):
    """Sizes that are no multiple of the lattice's need one more lattice line for some offsets."""
    values = draw("perlin", keys(200, "size"), (2, size, size + 1), scale=scale)
    assert values.shape == (200, 2, size, size + 1)
    assert values.abs().max() <= 1


def test_perlin_is_smooth_zero_mean_and_shows_no_lattice():
    rows, scale = 2048, 8
    values = draw("perlin", keys(rows, "perlin"), (2, 24, 24), torch.float64, scale=scale)
    assert values.std().item() == pytest.approx(STD["perlin"], rel=0.03)
    assert values.mean().abs() < 5 * STD["perlin"] / (rows * 2 * 9) ** 0.5  # about 9 independent cells a picture
    assert values.mean(0).abs().max() < 5.5 * STD["perlin"] / rows**0.5

    def correlation(lag: int) -> float:
        return ((values[..., lag:] * values[..., : 24 - lag]).mean() / values.square().mean()).item()

    assert correlation(1) > 0.9
    assert correlation(1) > correlation(3) > correlation(5)
    assert abs(correlation(2 * scale)) < 0.02
    # Value and slope are as large on one pixel line as on another, so no line of a fixed lattice stands out.
    for axis in (2, 3):
        others = tuple(a for a in range(4) if a != axis)
        spread = values.square().mean(others)
        assert spread.max() / spread.min() < 1.15
    channels = (values[:, 0] * values[:, 1]).mean() / values.square().mean()
    assert channels.abs() < 0.02


def test_perlin_steps_are_small():
    """|gradient| of the noise is bounded, so neighbors differ by little and no seam shows at cell borders."""
    values = draw("perlin", keys(256, "steps"), (1, 64, 64), scale=16)
    assert values.diff(dim=2).abs().max() < 0.25
    assert values.diff(dim=3).abs().max() < 0.25


def test_image_seeds_depend_on_every_argument():
    indices = torch.arange(100)
    base = noise.image_seeds(0, "fit", "fgsm", 0, indices)
    others = [
        noise.image_seeds(1, "fit", "fgsm", 0, indices),
        noise.image_seeds(0, "test", "fgsm", 0, indices),
        noise.image_seeds(0, "fit", "pgd", 0, indices),
        noise.image_seeds(0, "fit", "fgsm", 1, indices),
    ]
    assert len(torch.cat([base, *others]).unique()) == 500
    assert torch.equal(noise.image_seeds(0, "fit", "fgsm", 0, indices[[7, 3]]), base[[7, 3]])


def test_an_int_seed_is_combined_with_the_pixels_in_any_batch_order_dtype_and_memory(monkeypatch):
    images = torch.rand(6, 3, 5, 7, generator=cases.generator(0)).bfloat16().float()  # an odd number of pixels
    images[0, 0] = 0
    wanted = noise.seeds(1, images)
    assert len({*wanted.tolist(), *noise.seeds(2, images).tolist()}) == 12
    assert wanted.dtype == torch.int64
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(noise.seeds(1, images.to(dtype)), wanted)
    assert torch.equal(noise.seeds(1, images.to(memory_format=torch.channels_last)), wanted)
    assert torch.equal(noise.seeds(1, images.mT.contiguous().mT), wanted)
    assert torch.equal(noise.seeds(1, images.repeat(1, 1, 1, 2)[..., :7]), wanted)
    assert torch.equal(noise.seeds(1, images.where(images > 0, -0.0)), wanted)
    assert torch.equal(noise.seeds(np.int64(1), images.flip(0)).flip(0), wanted)
    assert torch.equal(torch.cat([noise.seeds(1, image[None]) for image in images]), wanted)
    monkeypatch.setattr(noise, "_HASHED_AT_ONCE", 2 * images[0].numel())
    assert torch.equal(noise.seeds(1, images), wanted)
    assert torch.equal(noise.seeds(wanted, images), wanted)


def test_the_bits_of_an_int_seed_stay():
    """A stored run with an int seed can be repeated by every later version."""
    images = torch.arange(90).reshape(2, 3, 3, 5) / 89
    assert noise.seeds(7, images).tolist() == [-8323350067408486793, 5450628874483596531]


def test_hashes_tell_apart_pixels_places_and_shapes():
    black = torch.zeros(1, 1, 4, 6)
    drawings = ((torch.arange(2**14)[:, None] >> torch.arange(24)) & 1).float().reshape(-1, 1, 4, 6)
    assert len(noise.seeds(0, drawings).unique()) == len(drawings)
    pixels, orders = torch.rand(24, generator=cases.generator(0)), torch.rand(500, 24, generator=cases.generator(1))
    shuffled = pixels[orders.argsort(1)]
    assert len(noise.seeds(0, shuffled.reshape(-1, 1, 4, 6)).unique()) == 500
    shapes = [(1, 4, 6), (1, 6, 4), (4, 1, 6), (1, 1, 24), (1, 4, 5), (1, 1, 1)]
    assert len({noise.seeds(0, torch.zeros(1, *shape)).item() for shape in shapes}) == len(shapes)
    assert not torch.equal(noise.seeds(0, black), noise.seeds(1, black))


@pytest.mark.parametrize("start", ["black", "random"])
def test_one_level_of_one_pixel_flips_half_of_the_bits(start):
    image = torch.zeros(3, 8, 8) if start == "black" else torch.rand(3, 8, 8, generator=cases.generator(1))
    others = image.repeat(192, 1, 1, 1)
    others.flatten(1).diagonal().add_(1 / 255)
    changed = noise.seeds(0, others) ^ noise.seeds(0, image[None])
    flipped = (changed[:, None] >> torch.arange(64)) & 1
    assert flipped.double().mean() == pytest.approx(0.5, abs=0.02)
    assert flipped.double().mean(0).sub(0.5).abs().max() < 0.2


@pytest.mark.gpu
def test_hashes_are_the_same_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for dtype in (torch.float32, torch.float64, torch.float16):
        images = torch.rand(20, 3, 65, 63, generator=cases.generator(0), dtype=torch.float64).to(dtype)
        assert torch.equal(noise.seeds(3, images.cuda()).cpu(), noise.seeds(3, images))


def test_fold_leaves_its_arguments():
    seeds, counter = torch.arange(4), torch.arange(4)
    noise.fold(seeds, counter, "name", 3)
    assert torch.equal(seeds, torch.arange(4))
    assert torch.equal(counter, torch.arange(4))


def test_unknown_noise():
    with pytest.raises(ValueError, match=r"noise: expected one of .*, got 'pink'"):
        draw("pink", keys(1))
