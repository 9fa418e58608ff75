"""`ImageTable`: images that a CSV file lists with their labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robustsigma.data.class_names import NUMBER, are_indices, are_numbers, are_wnids, as_index, class_names
from robustsigma.data.csv_tables import PathsInside, read_csv
from robustsigma.data.dataset_spec import Split
from robustsigma.data.file_dataset_spec import FileDatasetSpec, ListedImage, Listing
from robustsigma.data.folder_scan import is_visible, split_name
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail

_SEPARATOR = re.compile(r"\s*[;|]\s*")
_NUMBERS = re.compile(rf"{NUMBER}(\s+{NUMBER})+", re.ASCII)
_DEFAULT_GEOMETRY = ResizeCrop(224, 256)


@dataclass(frozen=True)
class ImageTable(FileDatasetSpec):
    """Images of a folder that a CSV file lists: one row per image, with the columns `file` and `label`.

    A label is the index of a class, its WordNet identifier (if the classes are ImageNet's 1,000) or its name. Several
    labels, separated by ";" or "|" (numbers also by spaces), are all correct: in `benchmark`, a prediction of any of
    them is correct and is explained. In `evaluate` and in training only the first is correct. A name with a separator
    is one label if `class_list` has it. Paths cannot leave their folder.

    Without `split_column`, a fraction of the images becomes "test"; if that is all of them, it is the only split. With
    `split_column`, a table without "test" rows has its "val" rows as "test", and one without "val" rows takes some of
    "train". Rows of hidden files are left out. The first split warns once about such rows, about "val" rows as "test",
    about labels that may be names with "|" and about classes without a training or test image. The table is read once:
    make a new `ImageTable` after changing it.

    Args:
        root: the folder.
        table: CSV file, with cells between commas, semicolons or tabs; a relative path starts from `root`.
        images: folder that `file` is relative to, itself relative to `root`.
        masks: folder that masks are relative to, itself relative to `root`.
        file_column: column of the image files.
        label_column: column of the labels.
        mask_column: column of gray masks, white on the object that decides the label, or None. An empty cell is an
            unannotated image. A mask has the size of its image and is resized and cropped as its image is, to the
            nearest pixel. Files of class indices are refused.
        split_column: column of "train", "val" or "test" (or another word for one, as in `ImageFolder`), or None.
        class_list: names of all classes, in the order of their indices. None takes those of a trained network, else
            the sorted names in the table, or numbers if the labels are indices, also as floats such as "3.0". If all
            labels are numbers (or stand for a missing value, such as "nan" or "?") and one is not a non-negative whole
            number, it is an error. Numbers beside other names, such as "0" to "9" beside letters, are names.
        geometry: how images are resized and cropped. None is what a trained network needs, else 224 pixels of 256.
        channels: 3 for color, 1 for gray.
        val_fraction: fraction of the images, or of "train" rows if no row is "val", that becomes "val".
        test_fraction: fraction of the images that becomes "test" without a `split_column`.
        seed: seed of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError. Each
            split is decoded once in advance for it.

    Example:
        >>> ImageTable("coco", mask_column="mask").split("test").correct_labels(0)
        (3, 1)
    """

    _argument = "table"
    _label_argument = "label_column"
    root: str
    table: str = "labels.csv"
    images: str = "."
    masks: str = "."
    file_column: str = "file"
    label_column: str = "label"
    mask_column: str | None = None
    split_column: str | None = None
    class_list: tuple[str, ...] | None = None
    geometry: ResizeCrop | None = None
    channels: int = 3
    val_fraction: float = 0.1
    test_fraction: float = 1.0
    seed: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        self._check_settings(only_test=True)
        if self.class_list is not None:
            class_names("class_list", self.class_list)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        if self.class_list is not None:
            return self.class_list
        rows = [row for rows in self._listing.images.values() for row in rows]
        labels = sorted({each for row in rows for each in row.classes})
        indices = [index for each in labels if (index := as_index(each)) is not None]
        if len(indices) == len(labels):
            return tuple(map(str, range(max(indices) + 1)))
        if are_numbers(labels):
            odd = next(row for row in rows if not are_indices(row.classes))
            expected = f"non-negative whole numbers, as the labels are numbers, {odd.where}"
            got = repr(";".join(odd.classes)[:60])
            raise fail("label_column", expected, f"{got}; correct or remove the row, or give class_list")
        if are_wnids(labels):
            raise fail("class_list", "names of all classes, since the labels are WordNet identifiers", "None")
        return class_names("label_column", labels)

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> ImageTable:
        """Return the same images with the network's class names and geometry, if these are not given."""
        names = tuple(classes) if self.class_list is None else self.class_list
        other = dataclasses.replace(self, class_list=names, geometry=self.geometry or geometry)
        return self._sharing(other) if all(_labels(name) == (name,) for name in names) else other

    @property
    def _resize(self) -> ResizeCrop:
        return self.geometry or _DEFAULT_GEOMETRY

    @property
    def _place(self) -> Path:
        return Path(self.root) / self.table

    @property
    def _tables(self) -> list[Path]:
        return [self._place]

    @cached_property
    def _listing(self) -> Listing:
        """The rows of visible files. Whether the files exist is not checked."""
        if not self._place.is_file():
            raise fail("table", "an existing CSV file", str(self._place))
        images = PathsInside(Path(self.root) / self.images, "file_column")
        masks = PathsInside(Path(self.root) / self.masks, "mask_column")
        columns = (self.file_column, self.label_column, self.mask_column, self.split_column)
        found: dict[Split | None, list[ListedImage]] = {}
        names, bars = set(self.class_list or ()), set()
        count = hidden = 0
        for cells, place in read_csv(self._place, [each for each in columns if each is not None], "table"):
            where, text, count = f"in {place}", cells[self.label_column].strip(), count + 1
            classes = (text,) if text in names else _labels(text)
            bars.add(text.count("|"))
            if not classes:
                raise fail("label_column", f"at least one class {where}", "none")
            path = images.find(cells[self.file_column], where)
            mask = "" if self.mask_column is None else cells[self.mask_column]
            mask_path = masks.find(mask, where) if mask else None
            named = None if self.split_column is None else cells[self.split_column].strip()
            split = None if named is None else split_name(named)
            if named is not None and split is None:
                raise fail("split_column", f"train, val or test {where}", repr(named))
            if not all(map(is_visible, path[len(images.prefix) :].split("/"))):
                hidden += 1
                continue
            found.setdefault(split, []).append(ListedImage(path, classes, mask_path, where))
        if not found:
            told = " of a file that is not hidden" if hidden else ""
            raise fail("table", f"at least one row{told} in {self._place}", "none")
        notes = [f"left out {hidden} of {count} rows, which are of hidden files"] if hidden else []
        if self.split_column is not None and "test" not in found:
            notes.append("no row is of the test split, so the val rows are")
            found |= {"test": found.pop("val")} if "val" in found else {}
        if not names and len(bars) == 1 and bars != {0}:
            notes.append('every label is several, separated by "|"; if that is part of the names, give class_list')
        return Listing(found, notes)


def _labels(text: str) -> tuple[str, ...]:
    """Return the labels that a cell holds, each once."""
    return tuple(dict.fromkeys(filter(None, text.split() if _NUMBERS.fullmatch(text) else _SEPARATOR.split(text))))
