"""Datasets of torch that somebody brings along."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData
from trainers import quiet_trainer

from robustsigma import FGSM
from robustsigma.cli import main
from robustsigma.data import ArrayDataset, Baggage, Datasets, DatasetSpec
from robustsigma.data.loading import load_batch, load_masks
from robustsigma.lightning import LitClassifier, RobustDataModule, SafetensorsExport
from robustsigma.models import SmallCNN

CLASSES = ("ant", "bee", "cat")
SCANS = Baggage(size=16, train=8, val=2, test=4)


def _tensors(count=12, **options):
    generator = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 8, 8, generator=generator).to(**options)
    return TensorDataset(images, torch.arange(count) % 3)


class Counted(Dataset):
    """Images whose pixels tell their index, with masks or without; YAML can describe it."""

    def __init__(self, count: int = 6, first: float = 0.0):
        self.count, self.first, self.read = count, first, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return torch.full((1, 2, 3), self.first + index / 100), index % 3


class Masked(Counted):
    kind = torch.bool

    def mask(self, index):
        return torch.ones(2, 3, dtype=self.kind) if index else torch.zeros(2, 3, dtype=self.kind)

    def correct_labels(self, index):
        return (index % 3, 2)


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter(_tensors())


class Both(Stream):
    def __getitem__(self, index):
        return torch.zeros(1, 2, 2), 0


class Bare(Dataset):
    def __len__(self):
        return 3


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(1, 2, 2), 0


class Unsure(Endless):
    def __len__(self):
        raise NotImplementedError


def test_items_match_the_contract():
    train, test = _tensors(), _tensors(5)
    source = Datasets(train, test=test, classes=list(CLASSES))
    assert isinstance(source, DatasetSpec)
    assert source.classes == CLASSES
    assert source.shape == (3, 8, 8)
    assert source.splits == ("train", "test")
    assert source.geometry is None
    for split, inner in (("train", train), ("test", test)):
        dataset = source.split(split)
        assert len(dataset) == len(inner)
        assert type(dataset[1][1]) is int
        images, labels = load_batch(dataset, range(len(inner)))
        assert torch.equal(images, inner.tensors[0])
        assert torch.equal(labels, inner.tensors[1])


def test_the_shape_is_that_of_the_first_dataset_and_only_first_items_are_read():
    val, test = Counted(), Counted(4)
    source = Datasets(val=val, test=test, classes=CLASSES)
    assert source.shape == (1, 2, 3)
    assert source.splits == ("val", "test")
    assert set(val.read) == set(test.read) == {0}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_that_was_not_given_is_named(split):
    given = {name: _tensors() for name in ("train", "val", "test") if name != split}
    source = Datasets(**given, classes=CLASSES)
    assert split not in source.splits
    with pytest.raises(ValueError, match=f"^{split}: expected a dataset, since its images are asked for, got None"):
        source.split(split)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'all'"):
        source.split("all")


def test_torchs_own_datasets():
    whole = _tensors()
    parts = Datasets(Subset(whole, [5, 2]), ConcatDataset([whole, _tensors(4)]), classes=CLASSES)
    assert torch.equal(parts.split("train")[0][0], whole.tensors[0][5])
    assert len(parts.split("val")) == 16
    assert torch.equal(parts.split("val")[13][0], _tensors(4).tensors[0][1])
    fake = FakeData(6, (3, 8, 9), 4)  # PIL images of 9 by 8 pixels, and labels that are tensors
    source = Datasets(fake, classes=list("abcd"))
    assert source.shape == (3, 8, 9)
    expected = torch.from_numpy(np.array(fake[2][0])).permute(2, 0, 1) / 255
    assert torch.equal(source.split("train")[2][0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(dtype):
    inner = _tensors(dtype=dtype)
    image, _ = Datasets(inner, classes=CLASSES).split("train")[1]
    assert image.dtype == torch.float32
    assert torch.equal(image, inner.tensors[0][1].float())


def test_bytes_become_shares_of_255():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    image, _ = Datasets([(images[0], 0)], classes=CLASSES).split("train")[0]
    assert torch.equal(image.flatten(), torch.arange(256) / 255)


@pytest.mark.parametrize(
    ("mode", "value", "channels", "share"),
    [
        ("1", 1, 1, 1.0),
        ("L", 51, 1, 0.2),
        ("LA", (51, 9), 1, 0.2),
        ("I;16", 13107, 1, 0.2),
        ("RGB", (51,) * 3, 3, 0.2),
        ("RGBA", (51, 51, 51, 9), 3, 0.2),
    ],
)
def test_pil_images_of_any_mode(mode, value, channels, share):
    source = Datasets([(Image.new(mode, (5, 4), value), 0)], classes=CLASSES)
    assert source.shape == (channels, 4, 5)
    assert torch.allclose(source.split("train")[0][0], torch.tensor(share))


def test_grey_images_become_colored_ones_among_these_and_not_the_other_way():
    gray, colored = Image.new("L", (4, 4), 51), Image.new("RGB", (4, 4), (51, 0, 0))
    image, _ = Datasets([(colored, 0), (gray, 1)], classes=CLASSES).split("train")[1]
    assert torch.allclose(image, torch.full((3, 4, 4), 0.2))
    with pytest.raises(ValueError, match=r"^train\[1\]: expected an image of shape \(1, 4, 4\), got \(3, 4, 4\)"):
        _ = Datasets([(gray, 0), (colored, 1)], classes=CLASSES).split("train")[1]


@pytest.mark.parametrize(
    "label", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)]
)
def test_labels_of_any_integer_kind(label):
    found = Datasets([(torch.zeros(1, 2, 2), label)], classes=CLASSES).split("train")[0][1]
    assert type(found) is int
    assert found == 2


@pytest.mark.parametrize(
    "label",
    [3, -1, 1.0, True, "1", None, np.float32(1), np.bool_(True), torch.tensor(1.0), torch.tensor([1]), np.array([1])],
)
@pytest.mark.parametrize("place", [0, 1])
def test_other_labels_are_refused(label, place):
    items = [(torch.zeros(1, 2, 2), 0)] * 2
    items[place] = torch.zeros(1, 2, 2), label
    with pytest.raises(ValueError, match=rf"^label of test\[{place}\]: expected an int from 0 to 2, got "):
        _ = Datasets(test=items, classes=CLASSES).split("test")[place]
    if place == 0:
        with pytest.raises(ValueError, match=r"^label of test\[0\]"):
            Datasets(test=items, classes=CLASSES)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(2, 2, 2), r"an item \(image, label\), got Tensor"),
        ({"image": torch.zeros(1, 2, 2), "label": 0}, r"an item \(image, label\), got dict"),
        ((torch.zeros(1, 2, 2),), r"an item \(image, label\), got 1 parts"),
        ((torch.zeros(1, 2, 2), 0, 0), r"an item \(image, label\), got 3 parts"),
        ((np.zeros((1, 2, 2), np.float32), 0), r"a tensor \(C, H, W\) or a PIL image, got ndarray"),
        ((torch.zeros(2, 2), 0), r"a float or uint8 image \(C, H, W\), got torch.float32 \(2, 2\)"),
        ((torch.zeros(1, 0, 2), 0), r"a float or uint8 image \(C, H, W\), got torch.float32 \(1, 0, 2\)"),
        ((torch.zeros(1, 2, 2, dtype=torch.int64), 0), r"a float or uint8 image \(C, H, W\), got torch.int64"),
        ((Image.new("F", (2, 2)), 0), "a readable image, gray or RGB, of 8 or 16 bits, got numbers with fractions"),
        ((torch.zeros(1, 2, 3), 0), r"an image of shape \(1, 2, 2\), got \(1, 2, 3\)"),
    ],
)
def test_other_items_are_refused(item, message):
    good = torch.zeros(1, 2, 2), 0
    with pytest.raises(ValueError, match=rf"^train\[1\]: expected {message}"):
        _ = Datasets([good, item], classes=CLASSES).split("train")[1]
    with pytest.raises(ValueError, match=rf"^val\[0\]: expected {message}"):
        Datasets([good], [item], classes=CLASSES)


@pytest.mark.parametrize(
    "given", [Bare(), Endless(), Unsure(), iter(()), 3, {0: 1}, {1, 2}, Endless, torch.tensor(0.5)]
)
def test_what_has_no_length_or_no_items_by_index_is_refused(given):
    with pytest.raises(
        ValueError, match=r"^val: expected a dataset with a length and items by index, an Iter.*, or None, got "
    ):
        Datasets(_tensors(), given, classes=CLASSES)


class Keyed(IterableDataset):
    def __init__(self, *items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_a_stream_is_checked_as_it_is_read():
    image = torch.full((1, 2, 2), 51, dtype=torch.uint8)
    stream = Datasets(Keyed((image, 1, 7), (image, np.int64(2), np.int64(8))), classes=CLASSES).split("train")
    assert [(x.dtype, label, key) for x, label, key in stream] == [(torch.float32, 1, 7), (torch.float32, 2, 8)]
    assert stream.has_keys
    texts = Datasets(Keyed((image, 1, "a"), (image, 1, "b")), classes=CLASSES).split("train")
    assert len({key for *_, key in texts}) == 2
    assert not texts.has_keys
    other = torch.zeros(1, 2, 2, dtype=torch.uint8)
    (first, second, third) = Datasets(Keyed((image, 1), (other, 1), (image, 0)), classes=CLASSES).split("train")
    assert first[2] == third[2] != second[2]  # of the pixels
    with pytest.raises(TypeError):
        len(stream)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((), "train: expected a stream with at least one image, or None, got none"),
        (((torch.zeros(1, 2, 2), 5),), "label of item 0 of train: expected an int from 0 to 2"),
        (((torch.zeros(1, 2, 2), 0, -1),), "key of item 0 of train: expected an integer from 0 on, or text, got -1"),
        (((torch.zeros(1, 2, 2), 0, 0.5),), "key of item 0 of train: expected an integer from 0 on, or text"),
        (((torch.zeros(1, 2, 2), 0), (torch.zeros(1, 3, 2), 0)), r"item 1 of train: expected an image of shape"),
        ((7,), r"item 0 of train: expected an item \(image, label\)"),
    ],
)
def test_other_streams_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        list(Datasets(Keyed(*items), classes=CLASSES).split("train"))


def test_a_run_that_can_resume_refuses_a_stream():
    stream = Datasets(Keyed((torch.zeros(1, 2, 2), 0)), classes=CLASSES)
    with pytest.raises(ValueError, match="dataset: expected images with a length and by index"):
        stream.fingerprint()


def test_no_dataset_and_no_images():
    with pytest.raises(ValueError, match=r"^train, val and test: expected a dataset for one of them at least"):
        Datasets(classes=CLASSES)
    with pytest.raises(ValueError, match=r"^test: expected a dataset with at least one image, or None, got none"):
        Datasets(test=Subset(_tensors(), []), classes=CLASSES)


@pytest.mark.parametrize("classes", [("ant",), (), "ant", ("ant", "bee", "ant"), ("ant", ""), (0, 1), None, 3])
def test_classes_are_distinct_names(classes):
    with pytest.raises(ValueError, match=r"^classes: expected .*names of classes"):
        Datasets(_tensors(), classes=classes)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.float64])
def test_masks_and_alternatives_stay_reachable(kind, monkeypatch):
    monkeypatch.setattr(Masked, "kind", kind)
    dataset = Datasets(test=Masked(), classes=CLASSES).split("test")
    masks = load_masks(pickle.loads(pickle.dumps(dataset)), [2, 0])
    assert masks.dtype == torch.float32
    assert torch.equal(masks, torch.stack([torch.ones(2, 3), torch.zeros(2, 3)]))
    assert dataset.correct_labels(1) == (1, 2)


def test_without_masks_there_are_none():
    plain, switch = Counted(), Counted()
    switch.mask = True  # no method
    for inner in (plain, switch, _tensors(), Subset(Masked(), [0, 1])):
        dataset = Datasets(inner, classes=CLASSES).split("train")
        assert load_masks(dataset, [0]) is None
        assert not hasattr(dataset, "correct_labels")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 2, 3), r"shape \(2, 3\), got \(1, 2, 3\)"),
        (torch.zeros(3, 2), r"shape \(2, 3\), got \(3, 2\)"),
        (torch.full((2, 3), 255), r"values in \[0, 1\], got \[255, 255\]"),
        (torch.full((2, 3), -0.5), r"values in \[0, 1\], got \[-0.5, -0.5\]"),
        (torch.full((2, 3), torch.nan), r"values in \[0, 1\], got \[nan, nan\]"),
    ],
)
def test_other_masks_are_refused(mask, message, monkeypatch):
    monkeypatch.setattr(Masked, "mask", lambda self, index: mask)
    dataset = Datasets(test=Masked(), classes=CLASSES).split("test")
    with pytest.raises(ValueError, match=rf"^mask\(1\) of test: expected {message}"):
        load_masks(dataset, [1])


def test_arrays_in_memory_are_given_as_they_are():
    arrays = SCANS.split("train")
    source = Datasets(arrays, classes=SCANS.classes)
    assert source.split("train") is arrays
    assert source.shape == SCANS.shape
    for label in (-1, 5):
        labels = torch.tensor([0, label])
        with pytest.raises(ValueError, match=r"^labels of val: expected class indices in \[0, 4\], got "):
            Datasets(arrays, ArrayDataset(arrays.images[:2], labels), classes=SCANS.classes)


def test_a_pickled_source_gives_the_same_and_is_equal_to_itself_alone():
    source = Datasets(_tensors(), classes=CLASSES)
    again = pickle.loads(pickle.dumps(source))
    assert again.classes == source.classes
    assert again.shape == source.shape
    assert again.splits == ("train",)
    assert torch.equal(again.split("train")[3][0], source.split("train")[3][0])
    assert source != again
    assert len({source, source, again}) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_with_workers_and_limits(workers):
    data = RobustDataModule(
        Datasets(Counted(20), Counted(9), classes=CLASSES),
        batch_size=4,
        num_workers=workers,
        limits={"train": 7, "val": 3},
    )
    train, (val,) = data.train_dataloader(), data.val_dataloader()
    for loader, count in ((train, 7), (val, 3)):
        batches = list(loader)
        indices = torch.cat([batch.indices for batch in batches])
        assert len(indices) == len(set(indices.tolist())) == count
        assert torch.allclose(torch.cat([batch.images for batch in batches])[:, 0, 0, 0] * 100, indices.float())
        assert torch.equal(torch.cat([batch.labels for batch in batches]), indices % 3)


class Watch(pl.Callback):
    """Counts what was asked of a network."""

    def __init__(self):
        self.batches = {"train": 0, "val": 0, "test": 0}

    def on_train_batch_end(self, *_):
        self.batches["train"] += 1

    def on_validation_batch_end(self, *_):
        self.batches["val"] += 1

    def on_test_batch_end(self, *_):
        self.batches["test"] += 1


def _trainer(folder, *callbacks):
    return quiet_trainer(*callbacks, epochs=2, default_root_dir=folder)


def _model():
    torch.default_generator.manual_seed(0)
    return LitClassifier(SmallCNN(3, 3, width=4), mean=[0.5], std=[0.25])


@pytest.mark.third_party_rng  # weights and dropout
@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_is_validated_where_there_are_images_for_it(tmp_path, val, workers):
    source = Datasets(_tensors(), _tensors(5) if val else None, classes=CLASSES)
    data = RobustDataModule(source, train_perturbation=FGSM(0.03), batch_size=4, num_workers=workers)
    watch, model = Watch(), _model()
    before = [weight.clone() for weight in model.parameters()]
    trainer = _trainer(tmp_path, watch, SafetensorsExport(str(tmp_path / "m.safetensors")))
    trainer.fit(model, data)
    assert watch.batches == {"train": 2 * 3, "val": 2 + 2 * 2 if val else 0, "test": 0}  # two of them before training
    assert ("val_clean_acc" in trainer.callback_metrics) == val
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (tmp_path / "m.safetensors").is_file()


@pytest.mark.third_party_rng
def test_what_is_asked_for_and_not_there_is_named(tmp_path):
    model = _model()
    only = {name: RobustDataModule(Datasets(**{name: _tensors(5)}, classes=CLASSES)) for name in ("train", "test")}
    watch = Watch()
    _trainer(tmp_path, watch).test(model, only["test"], verbose=False)
    assert watch.batches == {"train": 0, "val": 0, "test": 1}
    assert only["train"].val_dataloader() == []
    for verb, given, missing in (("validate", "train", "val"), ("test", "train", "test"), ("fit", "test", "train")):
        with pytest.raises(ValueError, match=f"^{missing}: expected a dataset, since its images are asked for"):
            getattr(_trainer(tmp_path), verb)(model, only[given])


@pytest.mark.third_party_rng
@pytest.mark.parametrize("stage", ["train", "test"])
def test_normalized_images_are_told_where_normalization_belongs(tmp_path, stage):
    inner = TensorDataset((_tensors().tensors[0] - 0.5) / 0.25, torch.arange(12) % 3)
    data = RobustDataModule(Datasets(**{stage: inner}, classes=CLASSES))
    with pytest.raises(ValueError, match=r"images: expected values in \[0, 1\].*normalization belongs in Classifier"):
        getattr(_trainer(tmp_path), "fit" if stage == "train" else stage)(_model(), data)


def test_a_dataset_in_the_place_of_a_source_is_told_what_to_do():
    with pytest.raises(ValueError, match=r"dataset: expected .*such as Datasets\(…\), got TensorDataset"):
        RobustDataModule(_tensors())


def test_yaml_can_describe_a_dataset_class_with_plain_arguments(capsys):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=DatasetSpec)
    inner = {"class_path": f"{__name__}.Counted", "init_args": {"count": 4, "first": 0.5}}
    given = {"class_path": "robustsigma.data.Datasets", "init_args": {"test": inner, "classes": list(CLASSES)}}
    config = parser.parse_object({"dataset": given})
    for each in (config, parser.parse_string(parser.dump(config))):
        source = parser.instantiate(each).dataset
        assert source.classes == CLASSES
        assert len(source.split("test")) == 4
        assert source.split("test")[1][0].max() == pytest.approx(0.51)
    arguments = ["--data.dataset=Datasets", f"--data.dataset.classes=[{','.join(CLASSES)}]"]
    network = ["--model.net=robustsigma.models.SmallCNN", "--model.net.channels=3", "--model.net.classes=3"]
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "fit",
                *network,
                *arguments,
                f"--allow={__name__}",
                f"--data.dataset.train={__name__}.Counted",
                "--print_config",
            ]
        )
    assert stopped.value.code == 0
    assert "class_path: robustsigma.data.Datasets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (torch.zeros(8, 9, 3), r"\(8, 9, 3\), channels last; use image.permute\(2, 0, 1\)$"),
        (torch.zeros(8, 9, 3, dtype=torch.uint8), r".*channels last; use image.permute"),
        (np.zeros((8, 9, 3), np.uint8), "ndarray; torchvision.transforms.v2.functional.to_image makes a tensor of it"),
    ],
)
def test_images_with_channels_last_are_told_at_once(image, told):
    with pytest.raises(ValueError, match=rf"^test\[0\]: expected .*got {told}"):
        Datasets(test=[(image, 0)], classes=CLASSES)
