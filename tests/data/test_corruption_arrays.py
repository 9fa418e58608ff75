"""Stored corruptions in the layout of CIFAR-10-C."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from robustsigma.data.array_files import CorruptionArrays
from robustsigma.data.dataset_spec import DatasetSpec

COUNT = 6


@pytest.fixture
def root(tmp_path):
    """Return a folder with two corruptions whose pixels tell their severity and place."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5 * COUNT, 8, 9, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.repeat(np.arange(1, 6), COUNT)
    images[:, 0, 1, 0] = np.tile(np.arange(COUNT), 5)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "snow.npy", images[:, :, :, :1])
    np.save(tmp_path / "labels.npy", np.tile(np.arange(COUNT) % 4, 5).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_severity_is_its_fifth_of_the_array(root, severity):
    source = CorruptionArrays(str(root), "fog", severity)
    dataset = source.split("test")
    assert source.shape == (3, 8, 9)
    assert source.classes == ("0", "1", "2", "3")
    assert len(dataset) == COUNT
    stored = np.load(root / "fog.npy")[(severity - 1) * COUNT : severity * COUNT]
    for place in range(COUNT):
        image, label = dataset[place]
        assert image[0, 0, 0] * 255 == pytest.approx(severity)
        assert image[0, 0, 1] * 255 == pytest.approx(place)
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(stored[place]).permute(2, 0, 1))
        assert label == place % 4


def test_grey_arrays(root):
    source = CorruptionArrays(str(root), "snow", 2)
    assert source.shape == (1, 8, 9)
    assert source.split("test")[0][0].shape == (1, 8, 9)


def test_only_test_images_exist(root):
    source = CorruptionArrays(str(root), "fog", 2)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=f"split: expected 'test', .* got '{split}'"):
            source.split(split)
    with pytest.raises(ValueError, match="split: expected one of train, val, test"):
        source.split("all")


def test_yaml_and_pickle(root):
    source = CorruptionArrays(str(root), "fog", 2)
    assert pickle.loads(pickle.dumps(source)) == source
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--s", type=DatasetSpec)
    config = {"class_path": "robustsigma.data.array_files.CorruptionArrays"}
    made = parser.instantiate(parser.parse_object({"s": {**config, "init_args": dataclasses.asdict(source)}})).s
    assert made == source


@pytest.mark.parametrize("severity", [0, 6, 1.0, True])
def test_bad_severities(root, severity):
    with pytest.raises(ValueError, match="severity: expected an integer from 1 to 5"):
        CorruptionArrays(str(root), "fog", severity)


def test_bad_files(root, tmp_path_factory):
    def refuse(message, name="fog", at=root):
        with pytest.raises(ValueError, match=message):
            CorruptionArrays(str(at), name, 1).split("test")

    refuse("root: expected a folder with NAME.npy and labels.npy", at=tmp_path_factory.mktemp("empty"))
    refuse("name: expected one of 'fog', 'snow', got 'frost'", "frost")
    refuse("name: .*got 'labels'", "labels")
    np.save(root / "float.npy", np.zeros((10, 8, 8, 3)))
    refuse(r"name: expected uint8 \(5 N, H, W, C\), C 1 or 3, got float64 \(10, 8, 8, 3\) in float.npy", "float")
    np.save(root / "seven.npy", np.zeros((7, 8, 8, 3), np.uint8))
    refuse("name: expected uint8", "seven")
    np.save(root / "short.npy", np.zeros((10, 8, 8, 3), np.uint8))
    refuse("root: expected labels.npy of 10 class indices", "short")
    (root / "broken.npy").write_bytes(b"no array")
    refuse("root: expected a readable array .*broken.npy", "broken")
    (root / "labels.npy").unlink()
    refuse("root: expected a readable array .*labels.npy")


def test_pickled_arrays_are_not_loaded(root):
    np.save(root / "fog.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="root: expected a readable array"):
        CorruptionArrays(str(root), "fog", 1).split("test")
