"""How images come to the device: as bytes, cropped at random, and from WebDataset's shards."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from trainers import quiet_trainer

from robustsigma import FGSM, Identity, evaluate
from robustsigma.data import Baggage, Datasets, ImageFolder, RandomResizedCrop
from robustsigma.lightning import LitClassifier, RobustDataModule
from robustsigma.models import SmallCNN

pytestmark = [pytest.mark.third_party_rng, pytest.mark.filterwarnings("ignore:The number of training batches")]
SCANS = Baggage(size=16, train=20, val=5, test=5)


class Recording(RobustDataModule):
    """Notes the dtypes of batches on their way to the device, and the images that training sees."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.sent.append(batch.images.dtype)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        made = super().on_after_batch_transfer(batch, dataloader_idx)
        self.seen.append(made.images)
        return made


def _trained(dataset=SCANS, precision="32-true", **options):
    data = Recording(dataset, train_perturbation=FGSM(0.05), batch_size=7, **options)
    data.sent, data.seen = [], []
    torch.default_generator.manual_seed(0)
    model = LitClassifier(SmallCNN(3, 5, strides=(1, 2, 2, 2), width=4), schedule="constant")
    quiet_trainer(precision=precision).fit(model, data)
    return data, model.state_dict()


@pytest.mark.parametrize(
    "precision",
    ["32-true", *(pytest.param(each, marks=pytest.mark.slow) for each in ("64-true", "bf16-true", "bf16-mixed"))],
)
def test_bytes_go_to_the_device_and_change_no_number(monkeypatch, precision):
    bytes_, weights = _trained(precision=precision)
    assert set(bytes_.sent) == {torch.uint8}
    # As it was: floats come from the loading process.
    monkeypatch.setattr(RobustDataModule, "_start", lambda *_: False)
    floats, expected = _trained(precision=precision)
    assert not {torch.uint8} & set(floats.sent)
    assert all(map(torch.equal, bytes_.seen, floats.seen))
    assert [images.dtype for images in bytes_.seen] == [images.dtype for images in floats.seen]
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_loader_by_itself_yields_floats():
    data = RobustDataModule(SCANS, batch_size=7)
    for loader in (data.train_dataloader(), data.val_dataloader()[0], data.test_dataloader()[0]):
        assert {batch.images.dtype for batch in loader} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch_factor": 0}, "prefetch_factor"),
        ({"persistent_workers": "yes"}, "persistent_workers"),
        ({"augment": torch.nn.Identity()}, "augment: expected an Albumentations, a RandomResizedCrop or None"),
    ],
)
def test_other_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RobustDataModule(SCANS, **options)


def test_loading_processes_are_as_asked_for():
    data = RobustDataModule(SCANS, num_workers=2, prefetch_factor=5, drop_last=True, batch_size=6)
    train, val = data.train_dataloader(), data.val_dataloader()[0]
    assert (train.num_workers, train.prefetch_factor, train.persistent_workers, len(train)) == (2, 5, True, 3)
    assert (val.num_workers, val.persistent_workers, len(val)) == (2, False, 1)
    train = RobustDataModule(SCANS, prefetch_factor=5, persistent_workers=True).train_dataloader()
    assert (train.num_workers, train.persistent_workers) == (0, False)


def _epochs(data, count=2):
    """Return images by (epoch, index)."""
    loader, found = data.train_dataloader(), {}
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            found |= {(epoch, int(index)): image for index, image in zip(batch.indices, batch.images, strict=True)}
    return found


def test_random_crops_follow_from_seed_epoch_and_index_alone(tmp_path):
    for place in range(20):
        pixels = np.random.default_rng(place).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        (tmp_path / "ab"[place % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "ab"[place % 2] / f"{place}.png")
    spec = ImageFolder(str(tmp_path), size=8)
    first = _epochs(RobustDataModule(spec, augment=RandomResizedCrop(), batch_size=7))
    again = _epochs(RobustDataModule(spec, augment=RandomResizedCrop(), batch_size=4, num_workers=2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[0, index], first[1, index]) for _, index in first)
    other = _epochs(RobustDataModule(spec, augment=RandomResizedCrop(), batch_size=7, seed=1), 1)
    assert not any(torch.equal(first[key], other[key]) for key in other)
    plain = RobustDataModule(spec, augment=RandomResizedCrop(), batch_size=7)
    val = next(iter(plain.val_dataloader()[0]))
    assert torch.equal(val.images[0], spec.split("val")[int(val.indices[0])][0])  # not augmented


# WebDataset

COUNT, SHARDS = 22, 4


@pytest.fixture
def shards(tmp_path):
    """Tar files of PNG images and their classes; images by their key."""
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
    for shard in range(SHARDS):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for place in range(shard, COUNT, SHARDS):
                content = io.BytesIO()
                Image.fromarray(pixels[place]).save(content, "PNG")
                for suffix, part in (("png", content.getvalue()), ("cls", str(place % 3).encode())):
                    member = tarfile.TarInfo(f"image{place:03}.{suffix}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    return tmp_path, torch.from_numpy(pixels).permute(0, 3, 1, 2)


class Tars(IterableDataset):
    """The same without WebDataset: whole shards are divided among loading processes."""

    def __init__(self, paths):
        self.paths = paths

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for path in self.paths[worker.id :: worker.num_workers] if worker else self.paths:
            with tarfile.open(path) as tar:
                parts = {member.name: tar.extractfile(member).read() for member in tar}
            for name in sorted(name for name in parts if name.endswith(".png")):
                key = name.removesuffix(".png")
                yield Image.open(io.BytesIO(parts[name])), int(parts[f"{key}.cls"]), key


# It leaves files open.
WEB = [
    pytest.mark.slow,
    *map(pytest.mark.filterwarnings, ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")),
]


def _web(paths):
    wds = pytest.importorskip("webdataset")
    return wds.WebDataset([*map(str, paths)], shardshuffle=False).decode("pil").to_tuple("png", "cls", "__key__")


@pytest.mark.parametrize("workers", [0, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3))])
@pytest.mark.parametrize("make", [Tars, pytest.param(_web, marks=WEB)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_shards_give_each_image_once_and_draw_by_key(shards, make, workers):
    folder, pixels = shards
    spec = Datasets(train=make(sorted(folder.glob("*.tar"))), classes=["a", "b", "c"])
    crop = RandomResizedCrop(scale=(0.3, 0.6))
    clean, cropped = (
        list(RobustDataModule(spec, augment=augment, batch_size=5, num_workers=workers).train_dataloader())
        for augment in (None, crop)
    )
    images, labels = torch.cat([batch.images for batch in clean]), torch.cat([batch.labels for batch in clean])
    places = [int((pixels / 255 == image).flatten(1).all(1).nonzero()) for image in images]
    assert sorted(places) == list(range(COUNT))
    assert labels.tolist() == [place % 3 for place in places]
    by_key = {int(key): image for batch in cropped for key, image in zip(batch.indices, batch.images, strict=True)}
    one = list(RobustDataModule(spec, augment=crop, batch_size=9).train_dataloader())
    assert len(by_key) == COUNT
    for batch in one:
        assert all(torch.equal(by_key[int(key)], image) for key, image in zip(batch.indices, batch.images, strict=True))


@pytest.mark.slow
def test_a_stream_that_does_not_divide_its_images_is_refused():
    class Whole(IterableDataset):
        def __iter__(self):
            return iter([(torch.full((1, 8, 8), place, dtype=torch.uint8), 0, place) for place in range(9)])

    spec = Datasets(Whole(), test=Whole(), classes=["a", "b"])
    told = "num_workers: expected 0 or 1, or a stream that divides its items"
    with pytest.raises(ValueError, match=told):
        list(RobustDataModule(spec, batch_size=4, num_workers=2).train_dataloader())
    assert sum(map(len, RobustDataModule(spec, batch_size=4, num_workers=1).train_dataloader())) == 9
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with pytest.raises(ValueError, match=told):
        evaluate(net, spec, {"clean": Identity()}, batch_size=4, num_workers=2)


@pytest.mark.slow
def test_a_stream_that_shuffles_the_same_images_in_each_worker_is_noticed():
    class Shuffled(IterableDataset):
        def __iter__(self):
            order = torch.randperm(40, generator=torch.Generator().manual_seed(torch.initial_seed() % 2**31))
            return iter([(torch.full((1, 8, 8), int(place), dtype=torch.uint8), 0, int(place)) for place in order])

    spec = Datasets(Shuffled(), test=Shuffled(), classes=["a", "b"])
    told = "num_workers: expected 0 or 1, or a stream that divides .* got most images twice"
    with pytest.warns(UserWarning, match=told):
        assert sum(map(len, RobustDataModule(spec, batch_size=4, num_workers=2).train_dataloader())) == 80
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with pytest.raises(ValueError, match=told):
        evaluate(net, spec, {"clean": Identity()}, batch_size=4, num_workers=2)


@pytest.mark.slow
def test_shards_train_and_are_evaluated(shards):
    folder, pixels = shards
    spec = Datasets(*[Tars(sorted(folder.glob("*.tar")))] * 3, classes=["a", "b", "c"])
    data, _ = _trained(spec, val_conditions={"FGSM": FGSM(0.1)}, num_workers=0)
    assert sum(map(len, data.seen)) >= 2 * COUNT
    net = SmallCNN(3, 3, strides=(1, 2, 2, 2), width=4)
    found = [evaluate(net, data, {"clean": Identity()}) for data in (spec, (pixels, torch.arange(COUNT) % 3))]
    assert [report.results.dataset["test"] for report in found] == [COUNT, COUNT]
