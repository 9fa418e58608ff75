import csv
import json
import re
import sys

import folders
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robustsigma.data.csv_tables import read_annotations
from robustsigma.data.image_files import area_average
from robustsigma.data.loading import load_batch, load_masks
from robustsigma.data.saliency_bench import SaliencyBench

SPLITS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path):
    return folders.saliency_bench(tmp_path / "bench")


def _everything(root, **options):
    for split in SPLITS:
        folders.read_everything(SaliencyBench(str(root), **options).split(split))


def test_the_split_is_60_20_20_and_stratified(root):
    parts = [SaliencyBench(str(root)).split(split) for split in SPLITS]
    assert [len(part) for part in parts] == [18, 6, 6]
    assert [sorted(part.labels) for part in parts] == [[0] * 9 + [1] * 9, [0] * 3 + [1] * 3, [0] * 3 + [1] * 3]
    assert len({path for part in parts for path in part.paths}) == 30
    assert [len(SaliencyBench(str(root), val_fraction=0.1).split(split)) for split in SPLITS] == [21, 3, 6]


def test_images_are_squeezed_as_the_benchmark_does(root):
    source = SaliencyBench(str(root))
    assert source.shape == (3, 224, 224)
    theirs = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    dataset = source.split("test")
    for i, path in enumerate(dataset.paths):
        with Image.open(path) as image:
            assert torch.equal(dataset[i][0], theirs(image)[:3])


def test_images_of_other_modes_get_three_channels_and_are_not_turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (root / "image").rglob("*.png"):
        Image.new("RGBA" if "cat" in path.name else "L", (20, 14), (9, 8, 7, 255) if "cat" in path.name else 6).save(
            path
        )
    for path in (root / "image").rglob("*.jpg"):
        pixels = np.zeros((14, 20, 3), np.uint8)
        pixels[:7] = 255
        Image.fromarray(pixels).save(path, exif=exif)
    for split in SPLITS:
        dataset = SaliencyBench(str(root), size=8).split(split)
        for (image, label), path in zip((dataset[i] for i in range(len(dataset))), dataset.paths, strict=True):
            if path.suffix == ".png":
                expected = torch.tensor((6.0, 6, 6) if label else (9.0, 8, 7)) / 255
                assert torch.equal(image, expected[:, None, None].expand(3, 8, 8))
            else:
                assert image[:, 0].min() > 0.9
                assert image[:, -1].max() < 0.1


@pytest.mark.parametrize("size", [12, 5, 224])
def test_annotations_reach_their_images(root, size):
    seen = 0
    for split in SPLITS:
        dataset = SaliencyBench(str(root), size=size).split(split)
        masks = load_masks(dataset, range(len(dataset)))
        for mask, path in zip(masks, dataset.paths, strict=True):
            i = int(path.stem[-2:])
            expected = torch.tensor(folders.marked(i)) if i % 3 else torch.zeros(12, 12)
            seen += 1
            if size == 12:
                assert torch.equal(mask, expected)
            else:
                assert torch.allclose(mask, area_average(expected, size).float())
    assert seen == 30


def test_a_class_list_gives_the_labels(root):
    folders.picture(root / "image" / "elk" / "elk.png", (1, 2, 3))
    source = SaliencyBench(str(root), ["dog", "cat"], size=8)
    assert source.classes == ("dog", "cat")
    assert hash(source) == hash(SaliencyBench(str(root), ("dog", "cat"), size=8))
    for split in SPLITS:
        dataset = source.split(split)
        assert [source.classes[label] for label in dataset.labels] == [path.parent.name for path in dataset.paths]
    assert SaliencyBench(str(root)).classes == ("cat", "dog", "elk")
    with pytest.raises(ValueError, match=r"class_list: expected folders of .*: cat, dog, elk, got \['owl'\]"):
        SaliencyBench(str(root), ("cat", "owl")).split("test")


def test_annotations_of_classes_that_are_not_used_are_no_concern(root):
    for i in range(5):
        folders.picture(root / "image" / "elk" / f"elk{i}.png", (i, 2, 3))
    folders.table(root / "attention_label" / "elk.csv", [(f"elk{i}.png", "broken") for i in range(5)])
    _everything(root, class_list=("cat", "dog"))
    with pytest.raises(ValueError, match="elk"):
        _everything(root)


def test_what_is_read_of_a_class_folder(root):
    folders.picture(root / "image" / "cat" / "deeper" / "other.png", (1, 2, 3))
    folders.picture(root / "image" / ".hidden" / "other.png", (1, 2, 3))
    folders.picture(root / "image" / "cat" / ".hidden" / "other.png", (1, 2, 3))
    (root / "image" / "cat" / "._cat_00.png").write_bytes(b"\x00\x05")
    (root / "image" / "cat" / "notes.txt").write_text("notes")
    (root / "attention_label" / "notes.txt").write_text("notes")
    (root / "attention_label" / "._first.csv").write_bytes(b"\x00\x05")
    source = SaliencyBench(str(root))
    with pytest.warns(UserWarning, match=r"root: skipped 1 \.txt file \(1 in cat\)") as told:
        assert sum(len(source.split(split)) for split in SPLITS) == 31
    assert len(told) == 1


@pytest.mark.parametrize(
    ("attention", "says"),
    [
        ("[[0, 1], [0", "Expecting ',' delimiter"),
        ("", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ([[0, 1], [0]], "inhomogeneous shape"),
        ([0, 1], r"shape \(2,\)"),
        ([[[0, 1]]], r"shape \(1, 1, 2\)"),
        ([], r"shape \(0,\)"),
        ([[]], r"shape \(1, 0\)"),
        ("1", r"shape \(\)"),
        ([[0, None]], "entries that are no numbers"),
        ([["0", "1"]], "entries that are no numbers"),
        ('"mask.png"', "mask.png"),
        ('{"a": 1}', '{"a": 1}'),
        ("[[0, NaN]]", "numbers from nan"),
        ("[[0, Infinity]]", "numbers from 0 to inf$"),
        ([[0, -0.5]], "numbers from -0.5 to 0$"),
        ([[0, 256]], "numbers from 0 to 256$"),
        ([[0, 255]], "numbers from 0 to 255; numbers up to 255 must be divided by 255"),
        ("[[0, 1" + "0" * 30 + "]]", "entries that are no numbers"),
    ],
)
def test_bad_numbers_name_their_row(root, attention, says):
    good = folders.marked(1)
    folders.table(root / "attention_label" / "third.csv", [("cat_00.png", good), ("cat_03.jpg", attention)])
    caught = []
    for split in SPLITS:  # the images of the other splits are not concerned
        try:
            folders.read_everything(SaliencyBench(str(root), skip_broken=True).split(split))
        except ValueError as error:
            caught.append(error)
    assert len(caught) == 1
    expected = rf"^root: expected a two-dim.*third\.csv, line 3 \(cat_03\.jpg\), got .*{says}"
    assert re.search(expected, str(caught[0]))


def test_numbers_may_be_truth_values_and_of_any_shape(root):
    folders.table(root / "attention_label" / "third.csv", [("cat_00.png", [[True, False, True, False]] * 2)])
    for split in SPLITS:
        dataset = SaliencyBench(str(root), size=4).split(split)
        for i, path in enumerate(dataset.paths):
            if path.name == "cat_00.png":
                assert torch.equal(dataset.mask(i), torch.tensor([1.0, 0, 1, 0]).expand(4, 4))
                return
    raise AssertionError("the image is in no split")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the columns img_idx, attention, each once, in .*third.csv, got nothing"),
        (b"img_idx,mask\n", "the columns img_idx, attention, each once, in .*third.csv, got img_idx, mask"),
        (b"img_idx,attention,attention\n", "got img_idx, attention, attention"),
        (b"img_idx,attention\na.png\n", "2 cells in .*third.csv, line 2, got 1"),
        (b"img_idx,attention\n\na.png,[[0, 1]]\n", "2 cells in .*third.csv, line 3, got 3"),
        (b'img_idx,attention\na.png,"[[0,', "rows of UTF-8 text, .* in .*third.csv, line 2, got"),
        (b'img_idx,attention\n\xff\xfe.png,"[[0]]"\n', "rows of UTF-8 text"),
        (b'img_idx,attention\ncat/cat_00.png,"[[0]]"\n', r"the name of a file.* line 2, got 'cat/cat_00\.png'"),
        (b'img_idx,attention\n..,"[[0]]"\n', r"the name of a file.* line 2, got '\.\.'"),
        (b'img_idx,attention\n,"[[0]]"\n', "the name of a file.* line 2, got ''"),
    ],
)
def test_malformed_tables(root, content, says):
    (root / "attention_label" / "third.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"root: expected .*{says}"):
        SaliencyBench(str(root)).split("test")


def test_tables_may_have_more_columns_a_byte_order_mark_and_other_line_ends(tmp_path):
    text = 'img_idx,no,attention\r\na.png,0,"[[0,\r\n 1]]"\r\n\r\n"b, c.png",1,"[[1, 0]]"\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    rows = read_annotations(tmp_path)
    assert {name: row.numbers().tolist() for name, row in rows.items()} == {"a.png": [[0, 1]], "b, c.png": [[1, 0]]}
    assert rows["b, c.png"].where.endswith("a.csv, line 5 (b, c.png)")


def test_an_image_annotated_twice(root):
    again = json.dumps(folders.marked(1)).replace("0.0", "0").replace("1.0", "1")
    folders.table(root / "attention_label" / "third.csv", [("cat_01.jpg", again)])
    _everything(root)
    folders.table(root / "attention_label" / "third.csv", [("cat_01.jpg", folders.marked(2))])
    expected = (
        r"root: expected one annotation of cat_01\.jpg, got two that differ: .*first.csv, line 2 .*third.csv, line 2"
    )
    with pytest.raises(ValueError, match=expected):
        SaliencyBench(str(root)).split("test")


def test_an_annotation_that_two_images_could_have(root):
    folders.picture(root / "image" / "dog" / "cat_00.png", (1, 2, 3))
    _everything(root)  # nobody annotated either
    folders.picture(root / "image" / "dog" / "cat_01.jpg", (1, 2, 3))
    with pytest.raises(
        ValueError, match=r"root: expected one image for the annotation in .*, got .*cat.cat_01.*dog.cat_01"
    ):
        SaliencyBench(str(root)).split("test")


def test_annotations_without_an_image(root):
    folders.table(root / "attention_label" / "third.csv", [("owl.png", [[0, 1]]), ("cat_00.jpg", [[0, 1]])])
    with pytest.warns(UserWarning, match=r"root: 2 of 22 annotations are of images .* the first of owl\.png \(.*third"):
        dataset = SaliencyBench(str(root)).split("test")
    assert len(dataset) == 6
    for name in ("first", "second"):
        (root / "attention_label" / f"{name}.csv").unlink()
    with pytest.raises(ValueError, match="root: expected annotations that name the files of images, got 2 of 2"):
        SaliencyBench(str(root)).split("test")


def test_a_name_in_a_table_opens_no_file(root, tmp_path):
    folders.picture(tmp_path / "outside.png", (1, 2, 3))
    folders.table(root / "attention_label" / "third.csv", [(str(tmp_path / "outside.png"), [[0, 1]])])
    with pytest.raises(ValueError, match="the name of a file, without its folder"):
        SaliencyBench(str(root)).split("test")


@pytest.mark.parametrize("missing", ["image", "attention_label", "attention_label/*.csv"])
def test_missing_parts(root, missing):
    for path in root.glob(missing):
        path.rename(root / f"{path.name}.gone")
    says = "a folder with the subfolders" if missing == "image" else "CSV files of annotations in .*attention_label"
    got = {"image": "no folder", "attention_label": "no such folder"}.get(missing, "none")
    with pytest.raises(ValueError, match=f"root: expected {says}.*, got {got}"):
        SaliencyBench(str(root)).split("train")


def test_too_few_classes_or_images(tmp_path):
    (tmp_path / "image" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"root: expected at least two class folders in .*image, got 1"):
        SaliencyBench(str(tmp_path)).split("train")
    (tmp_path / "image" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"root: expected images of every class in .*, got none of cat \(empty\), dog"):
        SaliencyBench(str(tmp_path)).split("train")
    for name in ("cat", "dog"):
        folders.picture(tmp_path / "image" / name / "0.png", (1, 2, 3))
    folders.table(tmp_path / "attention_label" / "first.csv", [("0.jpg", [[1]])])
    folders.picture(tmp_path / "image" / "cat" / "0.png", (1, 2, 3))
    (tmp_path / "image" / "dog" / "0.png").rename(tmp_path / "image" / "dog" / "0.jpg")
    with pytest.raises(ValueError, match=r"root: expected enough images to split in .* 2 classes, got 2"):
        SaliencyBench(str(tmp_path)).split("train")
    (tmp_path / "image" / "test").mkdir()
    with pytest.raises(ValueError, match=r"root: expected class folders in .*image, got test, which names splits"):
        SaliencyBench(str(tmp_path)).split("train")


def test_broken_images(root):
    bad = root / "image" / "dog" / "dog_04.png"
    bad.write_bytes(bad.read_bytes()[:60])
    refused = 0
    for split in SPLITS:
        try:
            folders.read_everything(SaliencyBench(str(root)).split(split))
        except ValueError as error:
            assert f"root: expected a readable image at {bad}" in str(error)  # noqa: PT017 its split is not known
            with pytest.warns(UserWarning, match=r"1 of \d+ images are broken, the first is .*dog_04"):
                kept = SaliencyBench(str(root), skip_broken=True).split(split)
            assert bad not in kept.paths
            images, _ = load_batch(kept, range(len(kept)))
            assert len(load_masks(kept, range(len(kept)))) == len(images) == len(kept.rows)
            refused += 1
    assert refused == 1


@pytest.mark.parametrize("limit", [1000, sys.maxsize])
def test_the_csv_limit_is_put_back(root, limit):
    before = csv.field_size_limit(limit)
    try:
        folders.table(root / "attention_label" / "long.csv", [("cat_00.png", [[0] * 224] * 224)])
        _everything(root)
        assert csv.field_size_limit() == limit
        (root / "attention_label" / "long.csv").write_bytes(b'img_idx,attention\na.png,"[[0,')
        with pytest.raises(ValueError, match="rows of UTF-8 text"):
            SaliencyBench(str(root)).split("test")
        assert csv.field_size_limit() == limit
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    "field",
    [
        {"size": 0},
        {"val_fraction": 0.0},
        {"test_fraction": 1.0},
        {"seed": -1},
        {"class_list": "cat"},
        {"class_list": ("cat",)},
        {"class_list": ("cat", "cat")},
        {"class_list": ("cat", "../dog")},
        {"class_list": ("cat", "..")},
        {"class_list": ("cat", 3)},
    ],
)
def test_refuses(field):
    with pytest.raises(ValueError, match=f"^{next(iter(field))}: expected .* got"):
        SaliencyBench("x", **field)
    with pytest.raises(ValueError, match="val_fraction and test_fraction: expected a sum below 1"):
        SaliencyBench("x", val_fraction=0.5, test_fraction=0.5)
