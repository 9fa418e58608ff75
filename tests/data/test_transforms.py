import pickle
import random
import sys

import numpy as np
import pytest
import torch

from robustsigma.data.transforms import Albumentations

SOME = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "rotate": [-20, 20], "p": 1.0},
    {"name": "RandomBrightnessContrast", "p": 0.8},
    {"name": "GaussNoise", "p": 0.5},
]


@pytest.fixture(scope="module", autouse=True)
def _needs_albumentations():
    pytest.importorskip("albumentations")


@pytest.fixture(params=[1, 3])
def image(request):
    return torch.rand(request.param, 20, 24, generator=torch.Generator().manual_seed(0))


def test_shape_range_and_determinism(image):
    transform, again = Albumentations(SOME), Albumentations(SOME)
    before = image.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    results = [transform.apply(image, seed) for seed in range(8)]
    for seed in reversed(range(8)):
        assert torch.equal(again.apply(image, seed), results[seed])
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    assert torch.equal(image, before)
    for result in results:
        assert result.shape == image.shape
        assert result.dtype == image.dtype
        assert 0 <= result.min() < result.max() <= 1
    assert not torch.equal(results[0], results[1])
    assert transform.apply(image, 2**63 - 1).shape == image.shape


def test_flip_is_a_flip(image):
    flip = Albumentations([{"name": "HorizontalFlip", "p": 1.0}])
    assert torch.equal(flip.apply(image, 0), image.flip(2))
    assert torch.equal(Albumentations([]).apply(image, 0), image)


def test_equal_and_pickled(image):
    transform = Albumentations(SOME)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    assert torch.equal(copy.apply(image, 3), transform.apply(image, 3))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "NoSuchTransform"}, "expected the name of an Albumentations transform, got 'NoSuchTransform'"),
        ({"name": "Compose"}, "got 'Compose'"),
        ({"p": 1.0}, "expected a mapping with a name"),
        ("HorizontalFlip", "expected a mapping with a name"),
        ({"name": "HorizontalFlip", "foo": 1}, "expected valid arguments of HorizontalFlip"),
        ({"name": "Affine", "rotate": "far"}, "expected valid arguments of Affine"),
    ],
)
def test_bad_entries(entry, message):
    with pytest.raises(ValueError, match=r"transforms\[1\]: .*" + message):
        Albumentations([{"name": "HorizontalFlip"}, entry])


def test_bad_images_and_changed_shapes():
    crop = Albumentations([{"name": "CenterCrop", "height": 4, "width": 4}])
    with pytest.raises(ValueError, match="transforms: expected to keep the image's shape"):
        crop.apply(torch.zeros(3, 8, 8), 0)
    for bad in (torch.zeros(8, 8), torch.zeros(2, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="image: expected float"):
            crop.apply(bad, 0)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ImportError, match=r"pip install 'robustsigma\[augment\]'"):
        Albumentations([{"name": "HorizontalFlip"}])
