"""What a folder is: its splits, its classes, its images, and what is said of the rest."""

import io
import random
import shutil
from collections import Counter
from pathlib import Path

import folders
import pytest
import torchvision
from PIL import Image

from robustsigma.cli import images as cli_images
from robustsigma.data import ImageFolder, ImageTable, SaliencyBench
from robustsigma.data.folder_scan import image_suffixes, split_folders
from robustsigma.lightning import RobustDataModule

SPLITS = ("train", "val", "test")


def _png():
    content = io.BytesIO()
    Image.new("RGB", (6, 5), (9, 8, 7)).save(content, "PNG")
    return content.getvalue()


PNG = _png()


def put(root, *paths, content=PNG):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def fill(root, *parts, classes=("ant", "bee"), count=10):
    put(root, *(f"{part}/{name}/{i}.png" for part in parts for name in classes for i in range(count)))
    return root


def read(root, **settings):
    """Return the number of images of each split by the folder that they are from."""
    source = ImageFolder(str(root), size=4, **settings)
    found = {split: source.split(split).paths for split in source.splits}
    return {split: dict(Counter(path.relative_to(root).parts[0] for path in paths)) for split, paths in found.items()}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("TRAIN", "Validation", "TEST"),
        ("training", "dev", "testing"),
        ("train", "valid", "eval"),
        ("training_set", "val_set", "test_set"),
        ("trainset", "validset", "testset"),
        ("train2017", "val2017", "test2017"),
        ("seg_train", "seg_val", "seg_test"),
        ("MyTrain", "MyVal", "MyTest"),
        ("latest-train", "latest-val", "latest-test"),
    ],
)
@pytest.mark.parametrize("val", [True, False])
def test_split_folders_by_any_name(tmp_path, names, val):
    fill(tmp_path, *(names if val else names[::2]))
    assert ImageFolder(str(tmp_path)).classes == ("ant", "bee")
    train, validation, test = names
    if val:
        assert read(tmp_path) == {"train": {train: 20}, "val": {validation: 20}, "test": {test: 20}}
    else:
        assert read(tmp_path) == {"train": {train: 18}, "val": {train: 2}, "test": {test: 20}}


@pytest.mark.parametrize(
    ("parts", "expected", "warning"),
    [
        (
            ("train", "val"),
            {"train": {"train": 18}, "val": {"train": 2}, "test": {"val": 20}},
            "no test folder, so val/ is the test split, and validation images are drawn from the training images",
        ),
        (
            ("Training", "Validation"),
            {"train": {"Training": 18}, "val": {"Training": 2}, "test": {"Validation": 20}},
            "no test folder, so Validation/ is the test split",
        ),
        (("train",), {"train": {"train": 14}, "val": {"train": 2}, "test": {"train": 4}}, "train/ is the only split"),
        (("valid",), {"test": {"valid": 20}}, "no test folder, so valid/ is the test split"),
        (("test",), {"test": {"test": 20}}, None),
        (("val", "test"), {"val": {"val": 20}, "test": {"test": 20}}, None),
    ],
)
def test_splits_that_are_not_there(tmp_path, parts, expected, warning):
    fill(tmp_path, *parts)
    if warning is None:
        assert read(tmp_path) == expected
    else:
        with pytest.warns(UserWarning, match=warning) as told:
            assert read(tmp_path) == expected
        assert len(told) == 1
    source = ImageFolder(str(tmp_path))
    for split in set(SPLITS) - set(expected):
        with pytest.raises(ValueError, match=f"split: expected images for '{split}' in .* got none"):
            source.split(split)


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ("train/ant train/bee cat dog", "got train beside cat, dog; .* give class_list if all of them are classes"),
        ("bus car train", "got train beside bus, car"),
        ("train/ant train/bee test/ant test/bee unlabeled", "got test, train beside unlabeled"),
        ("seg_train/ant seg_test/ant seg_pred", "got seg_test, seg_train beside seg_pred"),
        ("train/ant train/bee val/ant val/bee valid/ant valid/bee", "one folder for 'val' in .*, got val and valid"),
        ("train/ant train/bee Train/ant Train/bee", "one folder for 'train' in .*, got Train and train"),
        ("train test", "at least two class folders in .*train, got 0, beside 9 .png files .9 in the folder itself."),
        (
            "train/ant train/bee test",
            "at least two class folders in .*test, got 0, beside 9 .png files .9 in the folder itself.",
        ),
        ("data/train/ant data/train/bee", "at least two class folders in .*, got 1 .data."),
        ("train/train/ant train/val/ant", "class folders in .*train, got train, val, which names splits"),
        (
            "ant/train ant/test bee/train bee/test",
            "split folders above the class folders in .*, got test, train in ant",
        ),
        ("train/ant train/bee test/ant test/cat", r"only classes of train/ in .*test, got \['cat'\]"),
        ("train/ant train/bee val/Ant val/bee", r"only classes of train/ in .*val, got \['Ant'\]"),
        ("val/ant val/bee test/ant test/cat", r"only classes of test/ in .*val, got \['bee'\]"),
    ],
)
def test_folders_that_are_refused(tmp_path, paths, says):
    put(tmp_path, *(f"{folder}/{i}.png" for folder in paths.split() for i in range(9)))
    for read_it in (lambda source: source.classes, lambda source: source.splits, lambda source: source.split("test")):
        with pytest.raises(ValueError, match=f"^root: expected .*{says}"):
            read_it(ImageFolder(str(tmp_path)))


def test_classes_that_are_called_like_splits(tmp_path):
    fill(tmp_path / "flat", ".", classes=("bus", "car", "train"))
    named = ImageFolder(str(tmp_path / "flat"), size=4, class_list=("train", "car", "bus"))
    assert Counter(named.split("train").labels) == {0: 7, 1: 7, 2: 7}
    trained = ImageFolder(str(tmp_path / "flat"), size=4, test_fraction=1).adapt_to_model(("train", "bus", "car"), None)
    assert Counter(trained.split("test").labels) == {0: 10, 1: 10, 2: 10}
    fill(tmp_path / "split", "train", "test", classes=("bus", "car", "train"))
    inside = ImageFolder(str(tmp_path / "split"), size=4, class_list=("train", "car", "bus"))
    assert len(inside.split("test")) == 30
    fill(tmp_path / "rooms", ".", classes=("train_station", "latest", "contest", "bullet train"))
    assert len(ImageFolder(str(tmp_path / "rooms")).classes) == 4
    assert split_folders(["train_station", "test_station"]) == {"train_station": "train", "test_station": "test"}


@pytest.mark.parametrize("part", [".", "train", "val", "test"])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "cat (empty)"),
        (("cat/1.heic", "cat/2.HEIC", "cat/a/3.txt"), "cat (2 .heic files (2 in cat), 1 .txt file (1 in cat/a))"),
        (("cat/.ipynb_checkpoints/1.png", "cat/._1.png", "cat/@eaDir/1.jpg", "cat/Thumbs.db"), "cat (empty)"),
        (("cat/1", "cat/2.tar.gz"), "cat (1 suffixless file (1 in cat), 1 .gz file (1 in cat))"),
    ],
)
def test_a_class_without_an_image_is_refused(tmp_path, part, files, says):
    fill(tmp_path, *([part] if part == "." else SPLITS), classes=("ant", "bee"))
    for other in () if part == "." else set(SPLITS) - {part}:
        fill(tmp_path, other, classes=("cat",))
    (tmp_path / part / "cat").mkdir(parents=True)
    put(tmp_path / part, *files)
    with pytest.raises(ValueError) as told:  # noqa: PT011 the whole message is compared
        _ = ImageFolder(str(tmp_path)).classes
    assert f"root: expected images of every class in {tmp_path / part}, got none of {says}" in str(told.value)


def test_a_broken_link_is_seen(tmp_path):
    fill(tmp_path, ".")
    (tmp_path / "cat").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"images of every class in .*, got none of cat \(empty\)"):
        _ = ImageFolder(str(tmp_path)).classes
    (tmp_path / "cat").unlink()
    (tmp_path / "ant" / "x.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"root: expected a readable image at .*x\.png"):
        folders.read_everything(ImageFolder(str(tmp_path), test_fraction=1).split("test"))


def test_skipped_files_are_counted_once(tmp_path):
    fill(tmp_path, ".")
    put(tmp_path, *(f"ant/{i}.heic" for i in range(4)), "bee/a.HEIC", "bee/b.json", "bee/deep/c", "d.JPG", "labels.csv")
    put(tmp_path, "ant/.x.heic", "bee/Thumbs.db", "ant/desktop.ini", "__MACOSX/ant/1.png", "ant/__MACOSX/1.heic")
    source = ImageFolder(str(tmp_path), size=4)
    with pytest.warns(UserWarning, match="skipped") as told:
        assert sum(len(source.split(split)) for split in (*SPLITS, *SPLITS)) == 40
    (warning,) = told
    assert str(warning.message) == (
        "root: skipped 1 suffixless file (1 in bee/deep), 5 .heic files (4 in ant, 1 in bee), 1 .json file (1 in bee): "
        "Pillow cannot read them as images; pillow_heif.register_heif_opener() reads HEIC; "
        f"skipped 1 .jpg file (1 in the folder itself), beside the folders of classes or splits [{tmp_path}]"
    )


def test_workers_do_not_repeat_the_warning(tmp_path, capfd):
    fill(tmp_path, "train", "val")
    put(tmp_path, "train/ant/1.heic", "val/bee/1.heic", "val/1.png")
    data = RobustDataModule(ImageFolder(str(tmp_path), size=4), batch_size=4, num_workers=2)
    with pytest.warns(
        UserWarning, match=r"skipped 2 \.heic files \(1 in train/ant, 1 in val/bee\).*1 in val\)"
    ) as told:
        counts = _counts(data)
    assert counts == [18, 2, 20]
    assert len(told) == 1
    assert "Warning" not in capfd.readouterr().err


def _counts(data):
    data.setup("fit")
    data.setup("test")
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    firsts = [each[0] if isinstance(each, list) else each for each in loaders]
    return [sum(len(batch.labels) for batch in each) for each in firsts]


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jpe", ".JPG", ".tiff", ".jp2", ".tga", ".webp", ".gif", ".pbm"])
def test_suffixes_that_pillow_reads(tmp_path, suffix):
    fill(tmp_path, ".")
    for i in range(10):
        folders.picture(tmp_path / "cat" / f"{i}{suffix}", (200, 100, 0) if suffix != ".pbm" else 1,
                        mode="1" if suffix == ".pbm" else "RGB")  # fmt: skip
    source = ImageFolder(str(tmp_path), size=4)
    assert Counter(label for split in SPLITS for label in source.split(split).labels) == {0: 10, 1: 10, 2: 10}


def test_suffixes_hold_those_of_torchvision_and_plugins(monkeypatch):
    assert set(torchvision.datasets.folder.IMG_EXTENSIONS) < image_suffixes()
    assert not {".pdf", ".mpg", ".mpeg", ".h5", ".eps", ".wmf", ".txt", ".heic"} & image_suffixes()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    assert ".heic" in image_suffixes()


def _is_hidden(path, root):
    return any(part.startswith((".", "__MACOSX")) for part in Path(path).relative_to(root).parts)


@pytest.mark.parametrize("seed", range(25))
def test_the_same_images_as_torchvision_reads(tmp_path, seed):
    draw = random.Random(seed)
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    put(elsewhere, "1.png", "deep/2.PNG")
    suffixes = (*torchvision.datasets.folder.IMG_EXTENSIONS, ".JPG", ".Png", ".TIFF")
    for name in draw.sample(["b", "a", "B", "c d", "ü", "10", "9", "x.png", "[a]*"], 4):
        put(root, f"{name}/first.png")
        for i in range(draw.randrange(6)):
            below = draw.choice(["", "deep/", "deep/er/", "a.jpg/", ".hidden/", ".ipynb_checkpoints/", "__MACOSX/"])
            put(root, f"{name}/{below}{draw.choice(['', '', '.', '._'])}{i}{draw.choice(suffixes)}")
        if draw.random() < 0.5:
            (root / name / "link").symlink_to(elsewhere, target_is_directory=True)
        if draw.random() < 0.5:
            (root / name / "link.png").symlink_to(elsewhere / "1.png")
    put(root, ".git/1.png")
    theirs = torchvision.datasets.ImageFolder(str(root), allow_empty=True)
    names = [name for name in theirs.classes if not name.startswith(".")]
    expected = sorted(
        (path, names.index(theirs.classes[label])) for path, label in theirs.samples if not _is_hidden(path, root)
    )
    source = ImageFolder(str(root), size=4, test_fraction=1)
    found = source.split("test")
    assert list(source.classes) == names
    assert sorted((str(path), label) for path, label in zip(found.paths, found.labels, strict=True)) == expected


def test_links_in_a_circle_end(tmp_path):
    fill(tmp_path, ".")
    (tmp_path / "ant" / "again").symlink_to(tmp_path / "ant", target_is_directory=True)
    (tmp_path / "bee" / "above").symlink_to(tmp_path / "bee" / "..", target_is_directory=True)
    labels = Counter(ImageFolder(str(tmp_path), size=4, test_fraction=1).split("test").labels)
    assert labels == {0: 10, 1: 20}  # bee/above/ant holds ten more, as torchvision reads it


@pytest.mark.parametrize("seed", range(5))
def test_small_classes_keep_a_training_image(tmp_path, seed):
    put(tmp_path, *(f"{name}/{i}.png" for name, count in {"a": 60, "b": 9, "c": 1}.items() for i in range(count)))
    source = ImageFolder(str(tmp_path), size=4, seed=seed)
    with pytest.warns(UserWarning, match="root: 1 of 3 classes without a test image: c "):
        assert Counter(source.split("train").labels)[2] == 1


@pytest.mark.parametrize(
    ("lacking", "what"), [("val", "a validation image"), ("test", "a test image"), ("train", "a training image")]
)
def test_classes_that_a_split_lacks(tmp_path, lacking, what):
    fill(tmp_path, *SPLITS, classes=("a", "b", "c"))
    if lacking == "train":
        source = ImageFolder(str(tmp_path), size=4, class_list=("a", "b", "c", "d", "e"))
        says = f"root: 2 of 5 classes without {what}: d, e "
    else:
        shutil.rmtree(tmp_path / lacking / "b")
        source, says = ImageFolder(str(tmp_path), size=4), f"root: 1 of 3 classes without {what}: b "
    with pytest.warns(UserWarning, match=says) as told:
        assert [sorted(set(source.split(split).labels)) for split in SPLITS] == [
            [0, 2] if split == lacking != "train" else [0, 1, 2] for split in SPLITS
        ]
    assert len(told) == 1


def test_broken_images_that_were_all_of_a_class_are_named(tmp_path):
    fill(tmp_path, ".")
    put(tmp_path, *(f"cat/{i}.jpg" for i in range(10)), content=b"<html>")
    with pytest.warns(UserWarning, match=r"7 of 21 images are broken.*; skipped, so that no image is left of class 2"):
        ImageFolder(str(tmp_path), size=4, skip_broken=True).split("train")


def _table(root, rows, header="file,label,split"):
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text("\n".join([header, *rows]))
    put(root, *(row.split(",")[0] for row in rows))
    return ImageTable(str(root), split_column="split" if "split" in header else None)


def test_tables_name_splits_as_folders_do(tmp_path):
    rows = [f"{split}{i}.png,{'ab'[i % 2]},{split}" for split in ("Training", "valid", "TEST") for i in range(4)]
    source = _table(tmp_path, rows)
    assert [len(source.split(split)) for split in SPLITS] == [4, 4, 4]


def test_tables_leave_out_hidden_files_and_say_what_is_missing(tmp_path):
    rows = [f"a/{i}.png,{'ab'[i % 2]},train" for i in range(4)]
    rows += ["a/4.png,c,test", ".ipynb_checkpoints/0.png,a,test", "a/._0.png,a,train"]
    source = _table(tmp_path, rows)
    with pytest.warns(UserWarning, match="left out") as told:
        assert [len(source.split(split)) for split in SPLITS] == [3, 1, 1]
    (warning,) = told
    assert str(warning.message) == (
        "table: left out 2 of 7 rows, which are of hidden files; 1 of 3 classes without a training image: c; "
        f"2 of 3 classes without a test image: a, b [{tmp_path / 'labels.csv'}]"
    )
    with pytest.raises(ValueError, match=r"^table: expected at least one row of a file that is not hidden"):
        _table(tmp_path, [".a/1.png,a", "a/._1.png,b"], "file,label").split("test")


def test_saliency_bench_reads_class_folders_alike(tmp_path):
    root = folders.saliency_bench(tmp_path)
    put(root, "image/cat/1.heic", "image/dog/.ipynb_checkpoints/dog_00.png", "image/2.png")
    source = SaliencyBench(str(root), size=8)
    with pytest.warns(UserWarning, match=r"root: skipped 1 \.heic file \(1 in cat\).*1 \.png file") as told:
        assert sum(len(source.split(split)) for split in SPLITS) == 30
    assert len(told) == 1
    (root / "image" / "owl").mkdir()
    with pytest.raises(ValueError, match=r"images of every class in .*image, got none of owl \(empty\)"):
        _ = SaliencyBench(str(root)).classes
    assert SaliencyBench(str(root), class_list=("dog", "cat")).classes == ("dog", "cat")


def test_explain_and_augment_read_folders_alike(tmp_path):
    put(tmp_path, "a.png", "b/c.JFIF", ".d.png", "b/.e/f.png", "b/g.heic")
    with pytest.warns(UserWarning, match=r"^images: skipped 1 \.heic file \(1 in b\): Pillow cannot read"):
        found = cli_images.files([str(tmp_path)], tmp_path / "out")
    assert found == [tmp_path / "a.png", tmp_path / "b" / "c.JFIF"]
    (tmp_path / "only").mkdir()
    put(tmp_path, "only/g.heic")
    with pytest.raises(ValueError, match=r"images: expected a folder with images, at .*only, got skipped 1 \.heic"):
        cli_images.files([str(tmp_path / "only")], tmp_path / "out")


@pytest.mark.parametrize("splits", [("tr", "te"), ("fold1", "fold2")])
def test_folders_that_may_be_splits_by_other_words_are_named(tmp_path, splits):
    for place in [f"{split}/{name}" for split in splits for name in ("cat", "dog")]:
        (tmp_path / place).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (4, 4)).save(tmp_path / place / f"{number}.png")
    with pytest.warns(UserWarning, match=r"are taken as classes, but all hold the same folders .*cat.*class_list"):
        assert len(ImageFolder(str(tmp_path)).split("train")) > 0
