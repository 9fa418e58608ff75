"""CIFAR-10-C-like corruptions."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import cases
import pytest
import torch
from torch.nn.functional import interpolate

pytest.importorskip("albumentations")

from robustsigma import Corruption
from robustsigma.engine.perturbations import CORRUPTIONS, corruption

GREY = [name for name in CORRUPTIONS if name != "saturate"]


def pictures(channels: int, size: int, count: int = 24) -> torch.Tensor:
    """Return images with structure at every scale, as photographs have: white noise is blurred alike by any blur."""
    layers = []
    for level in [n for n in (2, 4, 8, 16) if 2 * n <= size]:
        noise = torch.rand(count, channels, level, level, generator=cases.generator(level))
        layers.append(interpolate(noise, size=(size, size), mode="bilinear", align_corners=True) * level**-0.5)
    mixed = sum(layers)
    low, high = mixed.flatten(1).amin(1), mixed.flatten(1).amax(1)
    return ((mixed - low[:, None, None, None]) / (high - low)[:, None, None, None]).clamp(0, 1)


def corrupted(name: str, severity: int, x: torch.Tensor, seed: int | torch.Tensor = 0) -> torch.Tensor:
    clf = cases.classifier(cases.constant(), mean=(0.5,), std=(0.5,))
    return Corruption(name, severity)(clf, x, 0, seed=seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 8), pytest.param(3, 64, marks=pytest.mark.slow)])
def test_every_severity_is_stronger_than_the_one_before(name, channels, size):
    if name == "saturate" and channels == 1:
        pytest.skip("color only")
    x, seed = pictures(channels, size), cases.seeds(24)
    moved = [(corrupted(name, s, x, seed) - x).square().flatten(1).mean(1).sqrt().mean().item() for s in range(1, 6)]
    assert moved[0] > 0.002
    assert all(later > 1.02 * earlier for earlier, later in pairwise(moved)), moved
    assert moved[-1] < 0.45


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_shape_keeps_its_shape(name):
    for shape in ((2, 3, 8, 8), (2, 3, 9, 31), (1, 3, 40, 12)):
        x = pictures(3, 64)[: shape[0], :, : shape[2], : shape[3]]
        for severity in (1, 5):
            got = corrupted(name, severity, x, 3)
            assert got.shape == x.shape
            assert got.isfinite().all()


@pytest.mark.parametrize("name", GREY)
def test_grey_images_are_corrupted_as_grey(name):
    x = pictures(1, 16, 4)
    got = corrupted(name, 4, x, cases.seeds(4))
    assert got.shape == x.shape
    assert not torch.equal(got, x)


def test_noise_has_its_strength_in_grey_and_in_color():
    for channels in (1, 3):
        flat = torch.full((16, channels, 32, 32), 0.5)
        moved = corrupted("gaussian_noise", 3, flat, cases.seeds(16)) - flat
        assert moved.std().item() == pytest.approx(0.08, rel=0.03)
        assert torch.corrcoef(torch.stack([moved[0].flatten(), moved[1].flatten()]))[0, 1].abs() < 0.2


def test_saturate_is_for_colors():
    with pytest.raises(ValueError, match="images: expected 3 channels of at least 8 pixels a side for saturate-like"):
        corrupted("saturate", 1, pictures(1, 8))


def test_names_say_that_they_are_like():
    assert Corruption("fog", 2).name == "fog-like"
    assert Corruption("fog-like", 2) == Corruption("fog", 2)
    assert repr(Corruption("fog", 2)) == "Corruption(name='fog-like', severity=2)"
    assert not Corruption("fog", 2).depends_on_model
    assert len(CORRUPTIONS) == 19


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("hail", 1, "name: expected one of 'gaussian_noise-like', .* got 'hail-like'"),
        (3, 1, "name: "),
        ("fog", 0, "severity: expected an integer from 1 to 5, got 0"),
        ("fog", 6, "severity: "),
        ("fog", 2.0, "severity: "),
        ("fog", True, "severity: "),
    ],
)
def test_bad_settings(name, severity, message):
    with pytest.raises(ValueError, match=message):
        Corruption(name, severity)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    corruption._transform.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'robustsigma\[augment\]'"):
        corrupted("fog", 1, pictures(3, 8))


@pytest.mark.parametrize("name", ["snow", "frost"])
def test_weather_draws_each_image_on_its_own_and_needs_no_package(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    images, seeds = pictures(3, 48, 6), cases.seeds(6)
    together = corrupted(name, 4, images, seeds)
    assert torch.equal(together[2:4], corrupted(name, 4, images[2:4], seeds[2:4]))
    assert not torch.equal(corrupted(name, 4, images[:1], seeds[:1]), corrupted(name, 4, images[:1], seeds[1:2]))


def test_snow_brightens_and_frost_covers_dark_places():
    dark = torch.full((32, 3, 32, 32), 0.2)
    for name in ("snow", "frost"):
        moved = corrupted(name, 5, dark, cases.seeds(32)) - dark
        assert moved.mean() > 0.05
        assert moved.std((2, 3)).min() > 0.02  # flakes and crystals, no veil


def test_threads_do_not_disturb_each_other():
    attack, x, y = Corruption("gaussian_noise", 3), cases.images(16, size=32), cases.labels(16)
    wanted = attack(cases.classifier(cases.constant()), x, y, seed=cases.seeds(16))

    def most(_):
        clf = cases.classifier(cases.constant())
        return max(float((attack(clf, x, y, seed=cases.seeds(16)) - wanted).abs().max()) for _ in range(8))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(most, range(4))) == 0
