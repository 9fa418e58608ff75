"""Hidden pixels interpolated from the revealed ones, and the information of an image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import griddata
from scipy.ndimage import gaussian_filter

from robustsigma.engine.metrics import masked_interpolation as module
from robustsigma.engine.metrics.masked_interpolation import interpolate_masked
from robustsigma.engine.metrics.pic import information

SIZES = [(2, 2), (2, 9), (9, 2), (13, 31), (40, 33)]
SHARES = [0.0, 0.02, 0.1, 0.3, 0.5, 0.75, 0.95]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def masks(height: int, width: int, share: float) -> list[np.ndarray]:
    """Return a scattered and a connected mask of about the same share, with the corners."""
    drawn = np.random.default_rng(round(100 * share)).random((height, width))
    smooth = gaussian_filter(drawn, 2)
    both = [drawn < share, smooth < np.quantile(smooth, share)]
    for mask in both:
        mask[np.ix_([0, -1], [0, -1])] = True
    return both


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", SIZES)
def test_exact_is_griddata_of_each_channel_to_the_last_bit(size, share):
    image = noise(*size)
    for mask in masks(*size, share):
        expected = image.copy()
        for channel in range(3 if not mask.all() else 0):
            values = griddata(
                np.argwhere(mask), image[mask, channel], np.argwhere(~mask), fill_value=image[..., channel].mean()
            )
            expected[~mask, channel] = values.astype(np.float32).round().astype(np.uint8)
        np.testing.assert_array_equal(interpolate_masked(image, mask, "exact"), expected)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", SIZES)
def test_fast_uses_a_delaunay_triangulation(size, share):
    """Every Delaunay triangulation interpolates y^2 + x^2 to the same values, and no other one to lower ones."""
    y, x = np.mgrid[: size[0], : size[1]]
    lifted = (y**2 + x**2)[..., None].astype(float)
    for mask in masks(*size, share):
        hidden = np.argwhere(~mask)
        if len(hidden):
            found, expected = (f(lifted, mask, hidden) for f in (module._from_borders, module._triangulated))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", SHARES)
def test_fast_keeps_a_plane(share):
    """On a plane all triangulations agree."""
    y, x = np.mgrid[:40, :33]
    plane = (3 * y + 2 * x + 5).astype(np.uint8)[..., None]
    for mask in masks(40, 33, share):
        np.testing.assert_array_equal(interpolate_masked(plane, mask, "fast"), plane)


def test_pixels_amid_revealed_ones_are_not_triangulated(monkeypatch):
    counts = []
    monkeypatch.setattr(module, "_triangulated", lambda image, points, hidden: counts.append(points.sum()) or hidden)
    mask = np.ones((40, 33), bool)
    mask[20, 16] = False
    module._from_borders(noise(40, 33), mask, np.argwhere(~mask))
    assert counts == [8 + 4]  # the pixel's neighbors and the corners


@pytest.mark.parametrize("interpolation", ["fast", "exact"])
def test_ends(interpolation):
    image = noise(6, 9)
    everything, nothing = np.ones((6, 9), bool), np.zeros((6, 9), bool)
    np.testing.assert_array_equal(interpolate_masked(image, everything, interpolation), image)
    corners = interpolate_masked(image, nothing, interpolation)
    assert (corners[[0, 0, -1, -1], [0, -1, 0, -1]] == image[[0, 0, -1, -1], [0, -1, 0, -1]]).all()
    line = np.linspace(image[0, 0].astype(float), image[0, -1].astype(float), 9)
    np.testing.assert_allclose(corners[0], line, atol=0.5 + 1e-4)
    assert not nothing.any()  # the argument is left alone


@pytest.mark.parametrize(
    ("image", "mask", "way", "name"),
    [
        (noise(4, 4).astype(int), np.ones((4, 4), bool), "fast", "image"),
        (noise(4, 4)[..., 0], np.ones((4, 4), bool), "fast", "image"),
        (noise(1, 4), np.ones((1, 4), bool), "fast", "image"),
        (noise(4, 4), np.ones((4, 5), bool), "fast", "revealed"),
        (noise(4, 4), np.ones((4, 4)), "fast", "revealed"),
        (noise(4, 4), np.ones((4, 4), bool), "nearest", "interpolation"),
    ],
)
def test_errors_name_the_argument(image, mask, way, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        interpolate_masked(image, mask, way)


def test_information_grows_with_detail_and_does_not_ask_how_grey_is_stored():
    image = noise(32, 20)
    assert information(image) > information(interpolate_masked(image, np.zeros((32, 20), bool)))
    assert information(image[..., :1]) == information(image[..., 0])
    for wrong in (image.astype(np.float32), image[..., :2], image[None]):
        with pytest.raises(ValueError, match=r"^image: expected"):
            information(wrong)
