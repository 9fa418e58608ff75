"""Tables of photographs: labels in every form, masks and crops at one place, and what cannot leave its folder."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import read_everything
from PIL import Image

from robustsigma.data import ImageFolder, ImageTable
from robustsigma.data.class_names import WNIDS, ClassIndex
from robustsigma.data.dataset_spec import adapt_and_check
from robustsigma.data.loading import load_batch, load_masks
from robustsigma.data.resize_crop import ResizeCrop

SIZE = (20, 14)
SMALL = ResizeCrop(8, 10)
THOUSAND = tuple(f"thing {i}" for i in range(1000))


def write(root, rows, header=("file", "label"), draw=True):
    """Write a table, and an image for each row whose file stays below the folder."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    for place, row in enumerate(rows):
        if draw:
            path = root / row[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(place).integers(0, 256, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
    return str(root)


def labels(source, split="test"):
    dataset = source.split(split)
    return [dataset[i][1] for i in range(len(dataset))]


def test_labels_are_indices_identifiers_or_names(tmp_path):
    assert len(set(WNIDS)) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    root = write(tmp_path, [("a.png", "7"), ("b/c.png", WNIDS[999]), ("d.png", "thing 3"), ("e.png", "thing 12")])
    source = ImageTable(root, geometry=SMALL).adapt_to_model(THOUSAND, None)
    assert labels(source) == [7, 999, 3, 12]
    assert source.classes == THOUSAND
    assert load_batch(source.split("test"), [0, 3])[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("cells", "class_list", "classes", "expected"),
    [
        (("2", "0", "2"), None, ("0", "1", "2"), [2, 0, 2]),
        (("10.0", "2", "2."), None, tuple(map(str, range(11))), [10, 2, 2]),
        (("-1", "nan", "2.0"), ("-1", "nan", "ant"), ("-1", "nan", "ant"), [0, 1, 2]),
        (("9", "b", "-1"), None, ("-1", "9", "b"), [1, 2, 0]),
        (("1950s", "1960s"), None, ("1950s", "1960s"), [0, 1]),
        (("owl", "ant", "bee"), None, ("ant", "bee", "owl"), [2, 0, 1]),
        (("owl", "ant", "bee"), ("owl", "bee", "cat", "ant"), ("owl", "bee", "cat", "ant"), [0, 3, 1]),
        (("2", "0", "ant"), ("owl", "bee", "ant"), ("owl", "bee", "ant"), [2, 0, 2]),
    ],
)
def test_classes_of_a_table_without_a_network(tmp_path, cells, class_list, classes, expected):
    root = write(tmp_path, [(f"{i}.png", cell) for i, cell in enumerate(cells)])
    source = ImageTable(root, class_list=class_list)
    assert source.classes == classes
    assert labels(source) == expected
    assert source.shape == (3, 224, 224)


@pytest.mark.parametrize("text", ["-1", "?", "NaN", "3.5", "1e1", "2 -1", "9" * 12])
def test_one_label_that_is_no_index_among_indices_is_refused(tmp_path, text):
    rows = [(f"{i}.png", str(i)) for i in range(11)]
    root = write(tmp_path, [*rows[:3], ("x.png", text), *rows[3:]])
    with pytest.raises(ValueError, match=r"^label_column: expected non-negative whole numbers.*, line 5, got '"):
        ImageTable(root).split("test")


@pytest.mark.parametrize("text", ["3;1", "3 ; 1;", "3|1", "3 1", "3;1;3", "3.0 1.0"])
def test_several_classes_may_be_right(tmp_path, text):
    root = write(tmp_path, [("a.png", text), ("b.png", "two words;0")])
    dataset = ImageTable(root, class_list=("a", "b", "two words", "d"), geometry=SMALL).split("test")
    assert dataset.correct_labels(0) == (3, 1)
    assert dataset[0][1] == 3
    assert dataset.correct_labels(1) == (2, 0)


def test_a_name_with_a_separator_is_one_label_if_it_is_a_class(tmp_path):
    names = ("skin|benign", "skin|malignant", "1 2")
    rows = [("a.png", names[1]), ("b.png", names[0])]
    source = ImageTable(write(tmp_path, rows), geometry=SMALL)
    with pytest.warns(UserWarning, match=r'every label is several, separated by "\|"; .* give class_list'):
        assert labels(source) == [2, 2]
    assert labels(replace(source, class_list=names)) == [1, 0]
    assert labels(source.adapt_to_model(names, None)) == [1, 0]
    write(tmp_path, [*rows, ("c.png", "1 2")])
    assert labels(ImageTable(str(tmp_path), class_list=names, geometry=SMALL)) == [1, 0, 2]
    assert len(set(labels(ImageTable(str(tmp_path), geometry=SMALL)))) == 2, "no warning, as one row has no bar"


def test_a_mask_is_cropped_where_its_image_is(tmp_path):
    root = tmp_path / "set"
    write(root / "images", [("a.png", "0"), ("b.png", "1")])
    (root / "images" / "labels.csv").unlink()
    write(root, [("a.png", "0", "sub/a.png"), ("b.png", "1", ""), ("a.png", "1", "sub/a2.png")],
          ("file", "label", "mask"), draw=False)  # fmt: skip
    marked = np.random.default_rng(0).random((30, 47)) > 0.5
    for name, values in (("a", marked), ("a2", ~marked)):
        path = root / "masks" / "sub" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values * 255).astype(np.uint8)).save(path)
    Image.fromarray(np.repeat((marked * 255).astype(np.uint8)[..., None], 3, 2)).save(root / "images" / "a.png")
    geometry = ResizeCrop(16, 20, "nearest")
    source = ImageTable(str(root), images="images", masks="masks", mask_column="mask", geometry=geometry)
    dataset = source.split("test")
    masks = load_masks(dataset, [0, 1, 2])
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks[0], dataset[0][0][0]), "the image shows its own mask, so that both must be the same"
    assert torch.equal(masks[2], 1 - masks[0])
    assert not masks[1].any()
    bilinear = ImageTable(str(root), images="images", masks="masks", mask_column="mask", geometry=ResizeCrop(16, 20))
    assert torch.equal(bilinear.split("test").mask(0), masks[0])
    assert load_masks(ImageTable(str(root), images="images", geometry=geometry).split("test"), [0]) is None


def test_splits(tmp_path):
    rows = [(f"{i}.png", str(i % 2)) for i in range(20)]
    root = write(tmp_path / "one", rows)
    whole = ImageTable(root, geometry=SMALL)
    assert whole.splits == ("test",)
    assert len(whole.split("test")) == 20
    with pytest.raises(ValueError, match=r"^split: expected images for 'train'"):
        whole.split("train")
    drawn = ImageTable(root, geometry=SMALL, test_fraction=0.25)
    assert drawn.splits == ("train", "val", "test")
    found = [{path.name for path in drawn.split(split).paths} for split in drawn.splits]
    assert [len(part) for part in found] == [13, 2, 5]
    assert len(set.union(*found)) == 20
    named = [(*row, "train" if i < 12 else "val") for i, row in enumerate(rows)]
    columns = ("file", "label", "split")
    with_val = ImageTable(write(tmp_path / "two", named, columns), geometry=SMALL, split_column="split")
    with pytest.warns(UserWarning, match=r"table: no row is of the test split, so the val rows are \[") as told:
        assert [len(with_val.split(split)) for split in ("train", "val", "test")] == [11, 1, 8]
    assert len(told) == 1
    assert [path.name for path in with_val.split("test").paths] == [f"{i}.png" for i in range(12, 20)]
    other = write(tmp_path / "three", [("a.png", "0", "fold1"), ("b.png", "1", "test")], columns)
    with pytest.raises(ValueError, match=r"^split_column: expected train, val or test in .*line 2, got 'fold1'"):
        ImageTable(other, split_column="split").split("test")


@pytest.mark.parametrize(
    "path",
    ["../up.png", "a/../../up.png", "/etc/passwd", "C:/x.png", "C:x.png", "\\\\host\\x.png", "\\x.png", "a\\..\\x.png",
     "", ".", "a\0b.png"],
)  # fmt: skip
@pytest.mark.parametrize("column", ["file", "mask"])
def test_paths_cannot_leave_their_folder(tmp_path, path, column):
    if column == "mask" and not path:
        return  # an image without a mask
    if "\0" in path and sys.version_info < (3, 11):
        pytest.skip("csv of Python 3.10 writes no NUL, and refuses to read one")
    row = (path, "0", "m.png") if column == "file" else ("a.png", "0", path)
    root = write(tmp_path / "in", [("a.png", "0", ""), row], ("file", "label", "mask"), draw=False)
    with pytest.raises(ValueError, match=rf"^{column}_column: expected a path that stays below .*line 3"):
        ImageTable(root, mask_column="mask").split("test")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "table: expected the columns file, label, each once"),
        ("file,label\n", "table: expected at least one row"),
        ("file,name\na.png,0\n", "table: expected the columns file, label"),
        ("file,label,file\na.png,0,b.png\n", "table: expected the columns file, label, each once"),
        ("file,label\na.png\n", "table: expected 2 cells in .*line 2, got 1"),
        ("file,label\na.png,\n", "label_column: expected at least one class in .*line 2"),
        ('file,label\n"a.png,0\n', "table: expected rows"),
        ("file,label\na.png,cat\nb.png,7\n", "label_column: expected a class by its name"),
        (f"file,label\na.png,{WNIDS[0]}\n", "class_list: expected names of all classes"),
        ("file,label\na.png,0\nb.png,1\n", "root: expected a readable image at .*a.png"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, told):
    (tmp_path / "labels.csv").write_text(content)
    given = ("cat", "dog") if "cat" in content else None
    with pytest.raises(ValueError, match=f"^{told}"):
        read_everything(ImageTable(str(tmp_path), class_list=given).split("test"))


def test_more_that_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^table: expected an existing CSV file"):
        ImageTable(str(tmp_path)).split("test")
    (tmp_path / "labels.csv").write_bytes(b"file,label\na.png,\xff\xfe\n")
    with pytest.raises(ValueError, match=r"^table: expected rows of UTF-8"):
        ImageTable(str(tmp_path)).split("test")
    (tmp_path / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    with pytest.raises(ValueError, match=r"^root: 2 of 2 images are broken, the first is .*a\.png$"):
        ImageTable(str(tmp_path), skip_broken=True).split("test")
    for field in ({"channels": 2}, {"test_fraction": 1.5}, {"val_fraction": 0}, {"seed": -1}, {"class_list": "ab"}):
        with pytest.raises(ValueError, match=rf"^{next(iter(field))}: expected"):
            ImageTable(str(tmp_path), **field)


def test_one_name_of_two_classes_is_refused():
    index = ClassIndex(("crane", "owl", "crane"))
    assert index.find("owl", "label", "here") == 1
    assert index.find("2", "label", "here") == 2
    with pytest.raises(ValueError, match=r"^label: expected the index of one of the classes that are called 'crane'"):
        index.find("crane", "label", "here")
    assert index.find("1.0", "label", "here") == 1
    for text in ("3", "-1", "1.5", "", "²", "9" * 5000, WNIDS[0]):
        with pytest.raises(ValueError, match=r"^label: expected a class by its name or its index below 3, here"):
            index.find(text, "label", "here")
    assert ClassIndex(("1", "0")).find("1", "label", "here") == 0


@pytest.mark.parametrize(
    ("folders", "classes", "expected"),
    [
        ((WNIDS[5], WNIDS[700]), THOUSAND, {5, 700}),
        (("2", "10"), tuple(f"c{i}" for i in range(11)), {2, 10}),
        (("owl", "ant"), ("owl", "bee", "ant"), {0, 2}),
        (("0", "1"), ("no", "yes"), {0, 1}),
    ],
)
def test_class_folders_are_found_among_the_networks_classes(tmp_path, folders, classes, expected):
    for name in folders:
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", SIZE, (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    source = ImageFolder(str(tmp_path), test_fraction=1)
    assert source.shape == (3, 64, 64)
    assert source.splits == ("test",)
    found = adapt_and_check(source, classes, (3, 8, 8), SMALL, "model")
    assert set(labels(found)) == expected
    assert len(found.split("test")) == 4
    own = ImageFolder(str(tmp_path), size=8, test_fraction=1)
    assert adapt_and_check(own, classes, (3, 8, 8), SMALL, "model").geometry is None
    if "10" in folders or "ant" in folders or WNIDS[5] in folders:
        with pytest.raises(ValueError, match=r"^(model: expected a model of|root: expected a class)"):
            adapt_and_check(source, ("x", "y", "z"), (3, 8, 8), SMALL, "model").split("test")
    with pytest.raises(ValueError, match=r"^size: expected a number of pixels, or a geometry instead, got both"):
        ImageFolder(str(tmp_path), size=8, geometry=SMALL)


def test_numbers_that_are_sorted_as_text_are_a_warning(tmp_path):
    for name in ("2", "10", "0"):
        write(tmp_path / "folders" / name, [("a.png", name)])
        (tmp_path / "folders" / name / "labels.csv").unlink()
    folders = ImageFolder(str(tmp_path / "folders"), size=8, test_fraction=1)
    table = ImageTable(write(tmp_path, [("a.png", "2"), ("b.png", "10"), ("c.png", "unknown")]), geometry=SMALL)
    for source, expected in ((folders, [0, 1, 2]), (table, [1, 0, 2])):
        with pytest.warns(UserWarning, match="classes are in alphabetical order, '10' before '2'; .* give class_list"):
            assert labels(source) == expected
    assert labels(replace(folders, class_list=("0", "2", "10"))) == [0, 2, 1]
    assert labels(replace(table, class_list=("2", "10", "unknown"))) == [0, 1, 2]


def test_a_network_of_other_names_is_refused(tmp_path):
    source = ImageTable(write(tmp_path, [("a.png", "0")]), class_list=("ant", "bee"), geometry=SMALL)
    with pytest.raises(
        ValueError, match=r"^model: expected a model of the dataset's classes, 'bee' at place 1, got 'cat'"
    ):
        adapt_and_check(source, ("ant", "cat"), (3, 8, 8), None, "model")
    assert adapt_and_check(source, ("0", "1"), (3, 8, 8), None, "model").classes == ("ant", "bee")


@pytest.mark.parametrize(("field", "value"), [("size", 0), ("resize", 7), ("resize", 0), ("size", 2.5)])
def test_geometry_refuses(field, value):
    with pytest.raises(ValueError, match=rf"^geometry\.{field}: expected"):
        ResizeCrop(**{"size": 8, field: value})


@pytest.mark.parametrize("kind", ["file", "folder", "circle", "mask"])
def test_links_cannot_lead_out_of_the_folder(tmp_path, kind):
    secret = tmp_path / "secret"
    write(secret, [("s.png", "0")])
    root = tmp_path / "root"
    write(root, [("a.png", "0"), ("b.png", "1")])
    (root / "images").mkdir()
    link = {"file": root / "x.png", "mask": root / "x.png", "folder": root / "x", "circle": root / "x.png"}[kind]
    link.symlink_to({"folder": secret, "circle": link}.get(kind, secret / "s.png"))
    file = "x/s.png" if kind == "folder" else "x.png"
    if kind == "mask":
        write(root, [("a.png", "0", file)], ("file", "label", "mask"), draw=False)
    else:
        write(root, [(file, "0"), ("a.png", "1")], draw=False)
    source = ImageTable(str(root), class_list=("a", "b"), mask_column="mask" if kind == "mask" else None)
    with pytest.raises(
        ValueError, match=rf"^{'mask' if kind == 'mask' else 'file'}_column: expected a path that stays"
    ):
        source.split("test")
    within = root / "within.png"
    within.symlink_to(root / "a.png")
    write(root, [("within.png", "0"), ("b.png", "1")], draw=False)
    assert labels(ImageTable(str(root), class_list=("a", "b"))) == [0, 1]
    moved = tmp_path / "moved"
    moved.symlink_to(root)
    assert labels(ImageTable(str(moved), class_list=("a", "b"))) == [0, 1], "the folder itself may be a link"


@pytest.mark.parametrize(
    "text", ["file;label\na.png;cat\n", "file\tlabel\na.png\tcat\n", "file,label,x;y;z;w\na.png,cat,1\n"]
)
def test_cells_are_between_what_the_header_shows(tmp_path, text):
    write(tmp_path, [("a.png", "cat")])
    (tmp_path / "labels.csv").write_text(text + text.splitlines()[1].replace("cat", "dog"))
    assert ImageTable(str(tmp_path)).classes == ("cat", "dog")
