"""Images that a CSV file lists with their labels: photographs for networks that were trained elsewhere."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustsigma.data.class_folders import split_name, uncovered
from robustsigma.data.class_index import ClassIndex, are_indices, are_wnids, class_names
from robustsigma.data.files import FileDataset, is_visible, verify_images
from robustsigma.data.folder import by_shares, check_channels, check_settings
from robustsigma.data.masked import MaskedFiles
from robustsigma.data.source import DatasetSpec, Split
from robustsigma.data.table_rows import Columns, Listed, read_table
from robustsigma.engine.validation import fail
from robustsigma.resize_crop import ResizeCrop
from robustsigma.runs.fingerprint import files

_DEFAULT = ResizeCrop(224, 256)
Row = tuple[Listed, tuple[int, ...]]


class _Alternatives:
    """Knows every class that an image may rightly be called by."""

    right: list[tuple[int, ...]]

    def alternatives(self, index: int) -> tuple[int, ...]:
        """Return every class that the image may rightly be called by."""
        return self.right[index]


class TableFiles(_Alternatives, FileDataset):
    """Image files of a table, read when asked for.

    Args:
        rows: of the table, with the labels that are right.
        geometry: how to resize and crop.
        channels: 1 or 3.
    """

    def __init__(self, rows: Sequence[Row], geometry: ResizeCrop, channels: int) -> None:
        super().__init__([row.path for row, _ in rows], [right[0] for _, right in rows], geometry, channels)
        self.right = [right for _, right in rows]


class MaskedTableFiles(_Alternatives, MaskedFiles):
    """The same with masks.

    Args:
        rows: of the table, with the labels that are right.
        geometry: how to resize and crop.
        channels: 1 or 3.
    """

    def __init__(self, rows: Sequence[Row], geometry: ResizeCrop, channels: int) -> None:
        masks = [row.mask for row, _ in rows]
        super().__init__([row.path for row, _ in rows], [right[0] for _, right in rows], geometry, channels, masks)
        self.right = [right for _, right in rows]


@dataclass(frozen=True)
class ImageTable(DatasetSpec):
    """Images of a folder that a CSV file lists: a row for each, with the columns `file` and `label`.

    A label is the index of a class, its WordNet identifier (where there are ImageNet's 1,000 classes) or its name.
    Several, separated by ";", are all right: a network that says any of them is right, and the class that it says is
    the one to explain (in `benchmark`; in `evaluate` and in training the first alone is right). Paths cannot leave
    their folder.

    Without `split_column`, a share of the images becomes "test", and where that is all of them there are no others.
    With it, a table without "test" rows has its "val" rows as "test"; one without "val" rows takes some of "train".
    Rows of hidden files are left out. The first split warns once of them, of "val" rows as "test" and of classes
    without a training or test image. The table is read once: make a new `ImageTable` after changing it.

    Args:
        root: the folder.
        table: the CSV file; a relative path starts from `root`.
        images: folder that `file` is relative to, itself relative to `root`.
        masks: the same of masks.
        file_column: of the images.
        label_column: of the labels.
        mask_column: of gray masks, white on the object that decides the label, or None; an empty cell is an image
            that nobody marked. A mask has the size of its image and is resized and cropped as that is, to the nearest
            pixel.
        split_column: of "train", "val" or "test" (or another word for one, as in `ImageFolder`), or None.
        class_list: names of all classes, in the order of their indices. None takes those of the network that the
            images are for; without one, the names in the table, sorted, or numbers where the labels are indices.
        geometry: how images are resized and cropped. None does it as the network wants that they are for; without
            one, 224 pixels of 256.
        channels: 3 for color, 1 for gray.
        val_fraction: share of images, or of "train" rows where no row is "val", that becomes "val".
        test_fraction: share of images that becomes "test" where there is no `split_column`.
        seed: of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError.
    """

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
        check_channels(self.channels)
        check_settings(1, self.val_fraction, self.test_fraction, self.seed, whole=True)
        if self.class_list is not None:
            object.__setattr__(self, "class_list", class_names("class_list", self.class_list))

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
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        size = (self.geometry or _DEFAULT).size
        return self.channels, size, size

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images."""
        return tuple(split for split in super().splits if self._parts[split])

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> ImageTable:
        """Return the same images with the network's class names and geometry, where these are not given."""
        names = tuple(classes) if self.class_list is None else self.class_list
        return dataclasses.replace(self, class_list=names, geometry=self.geometry or geometry)

    def split(self, split: Split) -> TableFiles | MaskedTableFiles:
        """Return the images of one split, read from disk as they are asked for."""
        self.check_split(split)
        if split not in self.splits:
            raise fail("split", f"images for {split!r} in {self._path}", "none")
        found = self._labeled[split]
        geometry = self.geometry or _DEFAULT
        if self.mask_column is None:
            return verify_images(found, lambda part: TableFiles(part, geometry, self.channels), self.skip_broken)
        masked = verify_images(found, lambda part: MaskedTableFiles(part, geometry, self.channels), self.skip_broken)
        for place in range(len(masked)):
            masked.mask(place)
        return masked

    def fingerprint(self) -> dict[str, Any]:
        """Return what the table and its image files tell, see `robustsigma.runs.fingerprint.files`."""
        rows = self._rows
        images, masks = {row.path for row in rows}, {row.mask for row in rows if row.mask is not None}
        root, table = Path(self.root), self._path
        found = {"images": (images, root / self.images), "masks": (masks, root / self.masks)}
        listed = {name: files(sorted(paths), folder) for name, (paths, folder) in found.items()}
        return {"table": files([table], table.parent), **listed}

    @property
    def _path(self) -> Path:
        return Path(self.root) / self.table

    @property
    def _images(self) -> Path:
        return Path(self.root) / self.images

    @cached_property
    def _listed(self) -> list[Listed]:
        columns = Columns(self.file_column, self.label_column, self.mask_column, self.split_column)
        return read_table(self._path, columns, images=self._images, masks=Path(self.root) / self.masks)

    @cached_property
    def _rows(self) -> list[Listed]:
        rows = [row for row in self._listed if all(map(is_visible, row.path.relative_to(self._images).parts))]
        if not rows:
            raise fail("table", f"at least one row of a file that is not hidden in {self._path}", "none")
        return rows

    @cached_property
    def _labeled(self) -> dict[Split, list[Row]]:
        """The rows by split. It warns once of what a user may not expect."""
        index = ClassIndex(self.classes)
        found: dict[Split, list[Row]] = {
            split: [(row, tuple(index.find(text, "label_column", row.where) for text in row.labels)) for row in rows]
            for split, rows in self._parts.items()
        }
        notes = []
        if len(self._rows) < len(self._listed):
            count = len(self._listed) - len(self._rows)
            notes.append(f"left out {count} of {len(self._listed)} rows, which are of hidden files")
        named = {split_name(row.split or "") for row in self._rows}
        if self.split_column is not None and "test" not in named:
            notes.append("no row is of the test split, so the val rows are")
        checked = {split: found[split] for split in self.splits if split != "val" or {"val", "test"} <= named}
        notes += uncovered(self.classes, {split: [right[0] for _, right in rows] for split, rows in checked.items()})
        if notes:
            warnings.warn(f"table: {'; '.join(notes)} [{self._path}]", stacklevel=1)
        return found

    @cached_property
    def _parts(self) -> dict[Split, list[Listed]]:
        """The rows by split."""
        rows = self._rows
        if self.split_column is None:
            return {"train": [], "val": [], "test": rows} if self.test_fraction == 1 else self._drawn(rows)
        parts: dict[Split, list[Listed]] = {name: [] for name in super().splits}
        for row in rows:
            split = split_name(row.split or "")
            if split is None:
                raise fail("split_column", f"train, val or test {row.where}", repr(row.split))
            parts[split].append(row)
        if not parts["test"]:
            parts["test"], parts["val"] = parts["val"], []
        if not parts["val"] and len(parts["train"]) > len({row.labels[0] for row in parts["train"]}):
            parts |= self._drawn(parts["train"], 0) | {"test": parts["test"]}
        return parts

    def _drawn(self, rows: list[Listed], test_fraction: float | None = None) -> dict[Split, list[Listed]]:
        names = sorted({row.labels[0] for row in rows})
        labels = [names.index(row.labels[0]) for row in rows]
        test = self.test_fraction if test_fraction is None else test_fraction
        drawn = by_shares(labels, self.val_fraction, test, self.seed, name="table", where=self._path)
        return {name: [rows[i] for i in part] for name, part in drawn.items()}
