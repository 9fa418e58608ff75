"""`ImageTable`: images that a CSV file lists with their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustsigma.data.class_names import ClassIndex, are_indices, are_wnids, class_names
from robustsigma.data.csv_tables import Columns, TableRow, read_table
from robustsigma.data.dataset_spec import Split
from robustsigma.data.file_dataset_spec import FileDatasetSpec, Manifest
from robustsigma.data.folder_scan import is_visible, split_name
from robustsigma.data.image_files import ImageRow
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.data.splitting import check_split_settings
from robustsigma.engine.validation import fail
from robustsigma.runs.fingerprint import files as files_fingerprint

_DEFAULT_GEOMETRY = ResizeCrop(224, 256)


@dataclass(frozen=True)
class ImageTable(FileDatasetSpec):
    """Images of a folder that a CSV file lists: one row per image, with the columns `file` and `label`.

    A label is the index of a class, its WordNet identifier (if the classes are ImageNet's 1,000) or its name. Several
    labels, separated by ";", are all correct: in `benchmark`, a prediction of any of them is correct and is explained.
    In `evaluate` and in training only the first is correct. Paths cannot leave their folder.

    Without `split_column`, a fraction of the images becomes "test"; if that is all of them, it is the only split. With
    `split_column`, a table without "test" rows has its "val" rows as "test", and one without "val" rows takes some of
    "train". Rows of hidden files are left out. The first split warns once about such rows, about "val" rows as "test"
    and about classes without a training or test image. The table is read once: make a new `ImageTable` after changing
    it.

    Args:
        root: the folder.
        table: CSV file; a relative path starts from `root`.
        images: folder that `file` is relative to, itself relative to `root`.
        masks: folder that masks are relative to, itself relative to `root`.
        file_column: column of the image files.
        label_column: column of the labels.
        mask_column: column of gray masks, white on the object that decides the label, or None. An empty cell is an
            unannotated image. A mask has the size of its image and is resized and cropped as its image is, to the
            nearest pixel.
        split_column: column of "train", "val" or "test" (or another word for one, as in `ImageFolder`), or None.
        class_list: names of all classes, in the order of their indices. None takes those of a trained network, else
            the sorted names in the table, or numbers if the labels are indices.
        geometry: how images are resized and cropped. None is what a trained network needs, else 224 pixels of 256.
        channels: 3 for color, 1 for gray.
        val_fraction: fraction of the images, or of "train" rows if no row is "val", that becomes "val".
        test_fraction: fraction of the images that becomes "test" without a `split_column`.
        seed: seed of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError.

    Example:
        >>> ImageTable("coco", mask_column="mask").split("test").correct_labels(0)
        (3, 1)
    """

    _argument = "table"
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
        self._check_channels()
        check_split_settings(self.val_fraction, self.test_fraction, self.seed, only_test=True)
        if self.class_list is not None:
            class_names("class_list", self.class_list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        if self.class_list is not None:
            return self.class_list
        labels = sorted({label for row in self._rows for label in row.labels})
        if are_indices(labels):
            return tuple(map(str, range(max(map(int, labels)) + 1)))
        if are_wnids(labels):
            raise fail("class_list", "names of all classes, since the labels are WordNet identifiers", "None")
        return class_names("label_column", labels)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that have images."""
        return tuple(split for split in super().splits if self._rows_by_split[split])

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> ImageTable:
        """Return the same images with the network's class names and geometry, if these are not given."""
        names = tuple(classes) if self.class_list is None else self.class_list
        return dataclasses.replace(self, class_list=names, geometry=self.geometry or geometry)

    def fingerprint(self) -> dict[str, Any]:
        """Return names, sizes and contents of the table and of its files, see `robustsigma.runs.fingerprint.files`."""
        images, masks = {row.path for row in self._rows}, {row.mask for row in self._rows if row.mask is not None}
        return {
            "table": files_fingerprint([self._place], self._place.parent),
            "images": files_fingerprint(sorted(images), Path(self.root) / self.images),
            "masks": files_fingerprint(sorted(masks), Path(self.root) / self.masks),
        }

    @property
    def _resize(self) -> ResizeCrop:
        return self.geometry or _DEFAULT_GEOMETRY

    @property
    def _place(self) -> Path:
        return Path(self.root) / self.table

    @cached_property
    def _all_rows(self) -> list[TableRow]:
        columns = Columns(self.file_column, self.label_column, self.mask_column, self.split_column)
        root = Path(self.root)
        return read_table(self._place, columns, images=root / self.images, masks=root / self.masks)

    @cached_property
    def _rows(self) -> list[TableRow]:
        """The rows of visible files."""
        folder = Path(self.root) / self.images
        rows = [row for row in self._all_rows if all(map(is_visible, row.path.relative_to(folder).parts))]
        if not rows:
            raise fail("table", f"at least one row of a file that is not hidden in {self._place}", "none")
        return rows

    @cached_property
    def _manifest(self) -> Manifest:
        index = ClassIndex(self.classes)

        def labels(row: TableRow) -> tuple[int, ...]:
            return tuple(index.find(text, "label_column", row.where) for text in row.labels)

        manifest = {
            split: [ImageRow(row.path, labels(row), row.mask) for row in rows]
            for split, rows in self._rows_by_split.items()
        }
        notes = []
        hidden = len(self._all_rows) - len(self._rows)
        if hidden:
            notes.append(f"left out {hidden} of {len(self._all_rows)} rows, which are of hidden files")
        named = {split_name(row.split or "") for row in self._rows}
        if self.split_column is not None and "test" not in named:
            notes.append("no row is of the test split, so the val rows are")
        self._warn(notes, manifest, [split for split in self.splits if split != "val" or {"val", "test"} <= named])
        return manifest

    @cached_property
    def _rows_by_split(self) -> dict[Split, list[TableRow]]:
        if self.split_column is None:
            if self.test_fraction == 1:
                return {"train": [], "val": [], "test": self._rows}
            return self._split(self._rows, self.test_fraction)
        parts: dict[Split, list[TableRow]] = {name: [] for name in super().splits}
        for row in self._rows:
            split = split_name(row.split or "")
            if split is None:
                raise fail("split_column", f"train, val or test {row.where}", repr(row.split))
            parts[split].append(row)
        if not parts["test"]:
            parts["test"], parts["val"] = parts["val"], []
        if not parts["val"] and len(parts["train"]) > len({row.labels[0] for row in parts["train"]}):
            parts |= self._split(parts["train"], 0) | {"test": parts["test"]}
        return parts

    def _split(self, rows: list[TableRow], test_fraction: float) -> dict[Split, list[TableRow]]:
        return self._draw(rows, [row.labels[0] for row in rows], test_fraction)
