import numpy as np
import pytest
import torch

from robustsigma.data import MedMNIST


def arrays(shape=(28, 28), counts=(6, 3, 4), classes=3):
    rng = np.random.default_rng(0)
    found = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        found[f"{split}_images"] = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)
    return found


@pytest.mark.parametrize(("shape", "expected"), [((28, 28), (1, 28, 28)), ((12, 10, 3), (3, 12, 10))])
def test_images_and_labels_are_those_of_the_file(tmp_path, shape, expected):
    found = arrays(shape)
    np.savez(tmp_path / "m.npz", **found)
    source = MedMNIST(str(tmp_path / "m.npz"))
    assert source.shape == expected
    assert source.classes == ("0", "1", "2")
    for split in ("train", "val", "test"):
        dataset = source.split(split)
        image, label = dataset[1]
        raw = found[f"{split}_images"][1]
        raw = raw[None] if raw.ndim == 2 else raw.transpose(2, 0, 1)
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(raw.copy()))
        assert label == 1
        assert len(dataset) == len(found[f"{split}_images"])
    assert MedMNIST(source.path, ("a", "b", "c")).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"^class_list: expected a name for each of 3 classes, got 2"):
        MedMNIST(source.path, ("a", "b")).split("test")


def _objects(found):
    found["test_labels"] = np.array([{"a": 1}] * 4, dtype=object)[:, None]


def _many(found):
    found["test_labels"] = np.zeros((4, 14), np.uint8)


def _solid(found):
    found["test_images"] = np.zeros((4, 8, 8, 8), np.uint8)


def _floats(found):
    found["val_images"] = found["val_images"] / 255


def _other_shape(found):
    found["val_images"] = found["val_images"][:, 1:]


def _negative(found):
    found["train_labels"] = found["train_labels"].astype(np.int64) - 1


def _missing(found):
    del found["val_images"]


@pytest.mark.parametrize("change", [_objects, _many, _solid, _floats, _other_shape, _negative, _missing])
def test_files_that_are_refused(tmp_path, change):
    found = arrays()
    change(found)
    np.savez(tmp_path / "m.npz", **found)
    with pytest.raises(ValueError, match=r"^path: expected .*m\.npz"):
        MedMNIST(str(tmp_path / "m.npz")).split("test")


def test_no_file(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("text.npz", "nowhere.npz"):
        with pytest.raises(ValueError, match=rf"^path: expected .*{name}"):
            MedMNIST(str(tmp_path / name)).split("test")
