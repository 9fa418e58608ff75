"""Image files: listed without decoding, decoded once per use, told apart by a fingerprint, verified in advance."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil

import folders
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms.v2 import functional

from robustsigma.cli import main
from robustsigma.data import (
    Albumentations,
    ArrayDataset,
    ImageFolder,
    ImageTable,
    RandomResizedCrop,
    SaliencyBench,
    verify_images,
)
from robustsigma.data.loading import default_workers, fingerprint, label_of, load_batch, load_pixels
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.network_state import as_pixels
from robustsigma.evaluation.illustrations import first_of_each_class
from robustsigma.lightning import RobustDataModule

SPECS = {
    "folder": lambda root: ImageFolder(str(folders.class_folders(root)), size=8),
    "folder with a geometry": lambda root: ImageFolder(str(folders.class_folders(root)), geometry=ResizeCrop(8, 10)),
    "table": lambda root: _table(folders.class_folders(root)),
    "saliency": lambda root: SaliencyBench(str(folders.saliency_bench(root)), size=8),
}


def _table(root):
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    folders.table(root / "labels.csv", [(name, name.split("/")[0]) for name in names], ("file", "label"))
    return ImageTable(str(root), geometry=ResizeCrop(8), test_fraction=0.2)


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, in order."""
    load, found = ImageFile.ImageFile.load, []

    def counting(self):
        if self.tile:  # empty once the image is decoded
            found.append(self.filename)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    return found


@pytest.mark.parametrize("name", SPECS)
def test_each_image_is_decoded_once_per_use(tmp_path, decoded, name):
    spec = SPECS[name](tmp_path)
    splits = [spec.split(split) for split in spec.splits]
    for split in splits:
        assert split.labels == [label_of(split, index) for index in range(len(split))]
        assert label_of(Subset(split, [1]), 0) == split.labels[1]
        fingerprint(split)
        assert fingerprint(Subset(split, [0, 1])) != fingerprint(Subset(split, [1, 0]))
    assert (spec.classes, spec.shape) == (spec.adapt_to_model(spec.classes, None).classes, (3, 8, 8))
    spec.fingerprint()
    first_of_each_class(splits[-1], len(spec.classes))
    data = RobustDataModule(spec, batch_size=4)
    loaders = [data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
    assert decoded == []
    content = io.BytesIO()
    torch.save(spec, content)  # as a checkpoint does, which holds settings and no list of files
    assert len(content.getvalue()) < 5000
    content.seek(0)
    assert torch.load(content, weights_only=True) == spec
    assert sum(len(batch) for loader in loaders for batch in loader) == sum(map(len, splits))
    assert len(decoded) == len(set(decoded)) == sum(map(len, splits))


def test_an_adapted_dataset_lists_no_file_again(tmp_path, monkeypatch):
    spec = _table(folders.class_folders(tmp_path))
    names = spec.classes
    monkeypatch.setattr("robustsigma.data.image_table.read_csv", None)
    adapted = spec.adapt_to_model(names, ResizeCrop(6))
    assert len(adapted.split("train")) == len(spec.split("train"))
    assert adapted.fingerprint() == spec.fingerprint()


def test_a_fingerprint_knows_every_name_and_size_and_no_place_or_time(tmp_path):
    root = folders.class_folders(tmp_path / "a", 4)
    first = ImageFolder(str(root)).fingerprint()
    split = fingerprint(ImageFolder(str(root)).split("train"))
    shutil.copytree(root, tmp_path / "b" / "c")
    os.utime(tmp_path / "b" / "c" / "ant" / "00.png", (0, 0))
    copy = ImageFolder(str(tmp_path / "b" / "c"))
    assert copy.fingerprint() == first
    assert fingerprint(copy.split("train")) == split
    path = root / "ant" / "00.png"
    content = path.read_bytes()
    changes = (
        lambda: path.rename(path.with_name("new.png")),
        lambda: path.write_bytes(content + b" "),
        lambda: path.write_bytes(content[:-1] + b"?"),
        path.unlink,
        lambda: shutil.copy(path, path.with_name("new.png")),
    )
    for change in changes:
        change()
        assert ImageFolder(str(root)).fingerprint() != first
        path.with_name("new.png").unlink(missing_ok=True)
        path.write_bytes(content)
    assert ImageFolder(str(root)).fingerprint() == first
    other = dataclasses.replace(ImageFolder(str(root)), class_list=("bee", "ant"))
    assert fingerprint(other.split("train")) != split  # other labels


def test_rows_are_kept_in_arrays(tmp_path):
    root = folders.class_folders(tmp_path / "ä b", 3)
    shutil.copy(root / "ant" / "00.png", root / "ant" / os.fsdecode(b"no utf-8 \xff.png"))
    split = ImageFolder(str(root), test_fraction=1).split("test")
    assert sorted(row.path for row in split.rows) == sorted(str(path) for path in root.rglob("*.png"))
    assert split.rows[-1] == split.rows[len(split) - 1]
    assert split.rows[2:4] == [split.rows[2], split.rows[3]]
    with pytest.raises(IndexError):
        split.rows[len(split)]
    again = pickle.loads(pickle.dumps(split))
    assert list(again.rows) == list(split.rows)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bytes_become_the_same_floats_on_every_device(device):
    every = torch.arange(256, dtype=torch.uint8)
    expected = torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255))
    assert torch.equal(as_pixels(every.to(device)).cpu(), expected)
    assert as_pixels(expected) is expected


def test_verify_images_names_every_broken_file(tmp_path, capsys):
    root, masks = tmp_path / "images", tmp_path / "masks"
    folders.masks_of(masks, folders.class_folders(root, 5))
    assert verify_images(root) == {}
    assert main(["doctor", "--data", str(root)]) == 0
    (root / "ant" / "01.png").write_bytes(b"no image")
    (masks / "bee" / "01.png").write_bytes(b"no mask")
    whole = (root / "bee" / "02.png").read_bytes()
    (root / "bee" / "02.png").write_bytes(whole[: len(whole) // 2])
    spec = ImageFolder(str(root), masks=str(masks), size=8)
    for data, files in ((root, ["ant/01", "bee/02"]), (spec, ["ant/01", "bee/02", "bee/01"])):
        found = verify_images(data)
        assert [path.rpartition("s/")[2] for path in found] == [f"{file}.png" for file in files]
        assert all(found.values())
    assert main(["doctor", "--data", str(root)]) == 1
    said = capsys.readouterr().out
    assert f"{root / 'bee' / '02.png'} " in said
    assert str(root / "bee" / "03.png") not in said
    for wrong in (tmp_path / "nowhere", 3, folders.class_folders(tmp_path / "empty", 0)):
        with pytest.raises(ValueError, match="data: expected"):
            verify_images(wrong)


def test_broken_images_are_left_out_once(tmp_path, decoded):
    (folders.class_folders(tmp_path, 5) / "ant" / "01.png").write_bytes(b"no image")
    spec = ImageFolder(str(tmp_path), size=8, test_fraction=1, skip_broken=True)
    with pytest.warns(UserWarning, match="1 of 10 images are broken"):
        assert len(spec.split("test")) == 9
    assert spec.split("test") is spec.split("test")
    assert len(decoded) == 9


# RandomResizedCrop

CROP = RandomResizedCrop(scale=(0.1, 0.6))


@pytest.fixture
def pictures(tmp_path):
    for c in "ab":
        for i in range(6):
            pixels = np.random.default_rng((ord(c), i)).integers(0, 256, (30, 40, 3)).astype(np.uint8)
            (tmp_path / c).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / c / f"{i}.png")
    return ImageFolder(str(tmp_path), size=12, test_fraction=1).split("test")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_crop_is_torchvisions_of_the_full_image(pictures, interpolation):
    crop = dataclasses.replace(CROP, interpolation=interpolation)
    images, labels = load_pixels(pictures, range(12), crop, range(12))
    assert images.dtype == torch.uint8
    assert labels.tolist() == pictures.labels
    mode = functional.InterpolationMode[interpolation.upper()]
    for index, image in enumerate(images):
        full = Image.open(pictures.rows[index].path)
        left, top, width, height, flipped = crop.box(40, 30, index)
        found = functional.resized_crop(full, top, left, height, width, [12, 12], mode)
        found = functional.horizontal_flip(found) if flipped else found
        assert torch.equal(image, functional.pil_to_tensor(found))


def test_a_crop_follows_from_the_images_seed_alone(pictures):
    whole = load_pixels(pictures, range(12), CROP, range(12))[0]
    order = [7, 2, 11]
    assert torch.equal(load_pixels(Subset(pictures, order), range(3), CROP, order)[0], whole[order])
    both = ConcatDataset([Subset(pictures, [0, 1]), pictures])  # as samples are added to training images
    assert torch.equal(
        load_pixels(both, [1, *(index + 2 for index in order)], CROP, [1, *order])[0], whole[[1, *order]]
    )
    assert not torch.equal(load_pixels(pictures, range(12), CROP, range(1, 13))[0], whole)
    assert torch.equal(load_batch(pictures, order)[0], torch.stack([pictures[index][0] for index in order]))


def test_boxes_have_the_areas_and_ratios_that_were_asked_for():
    boxes = [RandomResizedCrop(scale=(0.2, 0.5), flip=0.25).box(80, 60, seed) for seed in range(2000)]
    area, ratio = np.array([(box.width * box.height / 4800, box.width / box.height) for box in boxes]).T
    assert 0.19 < area.min() < 0.21
    assert 0.49 < area.max() < 0.51
    assert np.abs(np.log(ratio)).max() < np.log(4 / 3) + 0.05
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    assert np.mean([box.flipped for box in boxes]) == pytest.approx(0.25, abs=0.04)
    assert min(box.left for box in boxes) == 0
    assert max(box.left + box.width for box in boxes) == 80
    for width, height in ((1, 1), (1, 500), (500, 1)):
        box = RandomResizedCrop(scale=(1, 1)).box(width, height, 0)
        assert 0 < box.width <= width - box.left
        assert 0 < box.height <= height - box.top
    assert RandomResizedCrop(scale=(1, 1), ratio=(1, 1)).box(500, 10, 0)[:4] == (245, 0, 10, 10)


@pytest.mark.parametrize("floats", [False, True])
def test_images_in_memory_are_cropped_as_they_are(floats):
    images = torch.randint(0, 256, (3, 3, 10, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = ArrayDataset(images, torch.arange(3))
    dataset = [dataset[index] for index in range(3)] if floats else dataset
    found = load_pixels(dataset, [2, 0], CROP, [2, 0])[0]
    assert found.shape == (2, 3, 10, 14)
    assert found.dtype == (torch.float32 if floats else torch.uint8)
    assert 0 <= found.min() <= found.max() <= (1 if floats else 255)
    whole = RandomResizedCrop(scale=(1, 1), ratio=(1.4, 1.4), flip=1)
    assert torch.equal(load_pixels(dataset, [1], whole, [0])[0][0], load_pixels(dataset, [1])[0][0].flip(-1))


@pytest.mark.slow  # imports Albumentations
def test_further_transforms_follow_the_crop(pictures):
    pytest.importorskip("albumentations")
    turns = Albumentations([{"name": "VerticalFlip", "p": 1.0}])
    found = load_pixels(pictures, [3], dataclasses.replace(CROP, then=turns), [3])[0]
    assert torch.equal(found * 255, load_pixels(pictures, [3], CROP, [3])[0].flip(2).float())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0, 1)),
        ("scale", (0.5, 0.2)),
        ("scale", (0.5, 1.2)),
        ("scale", 0.5),
        ("ratio", (0, 1)),
        ("ratio", (1, float("nan"))),
        ("flip", 1.5),
        ("interpolation", "lanczos"),
        ("then", "flip"),
    ],
)
def test_other_crops_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        RandomResizedCrop(**{field: value})


def test_loading_processes_are_for_many_files(tmp_path, monkeypatch, pictures):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("robustsigma.data.loading._MANY", 12)
    assert default_workers(pictures) == default_workers(Subset(pictures, range(12))) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_workers(pictures) == 2
    assert default_workers(ArrayDataset(torch.zeros(20, 3, 2, 2, dtype=torch.uint8), torch.zeros(20))) == 0
    monkeypatch.setattr("robustsigma.data.loading._MANY", 13)
    assert default_workers(pictures) == 0
