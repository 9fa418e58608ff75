"""Images that a CSV file lists with their labels: photographs for networks that were trained elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsigma.data.class_index import ClassIndex, are_indices, are_wnids, class_names
from robustsigma.data.files import FileDataset, readable
from robustsigma.data.folder import check_channels, check_settings, stratified
from robustsigma.data.masked import MaskedFiles
from robustsigma.data.source import Source, Split
from robustsigma.data.table_rows import Columns, Listed, read_table
from robustsigma.engine.validation import fail
from robustsigma.fingerprint import files
from robustsigma.geometry import Geometry

_DEFAULT = Geometry(224, 256)
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

    def __init__(self, rows: Sequence[Row], geometry: Geometry, channels: int) -> None:
        super().__init__([row.path for row, _ in rows], [right[0] for _, right in rows], geometry, channels)
        self.right = [right for _, right in rows]


class MaskedTableFiles(_Alternatives, MaskedFiles):
    """The same with masks.

    Args:
        rows: of the table, with the labels that are right.
        geometry: how to resize and crop.
        channels: 1 or 3.
    """

    def __init__(self, rows: Sequence[Row], geometry: Geometry, channels: int) -> None:
        masks = [row.mask for row, _ in rows]
        super().__init__([row.path for row, _ in rows], [right[0] for _, right in rows], geometry, channels, masks)
        self.right = [right for _, right in rows]


@dataclass(frozen=True)
class ImageTable(Source):
    """Images of a folder that a CSV file lists: a row for each, with the columns `file` and `label`.

    A label is the index of a class, its WordNet identifier (where there are ImageNet's 1,000 classes) or its name.
    Several, separated by ";", are all right: a network that says any of them is right, and the class that it says is
    the one to explain (in `benchmark`; in `evaluate` and in training the first alone is right). Paths cannot leave
    their folder.

    Without `split_column`, a share of the images becomes "test", and where that is all of them there are no others.
    With it, a table without "test" rows has its "val" rows as "test"; one without "val" rows takes some of "train".

    Args:
        root: the folder.
        table: the CSV file; a relative path starts from `root`.
        images: folder that `file` is relative to, itself relative to `root`.
        masks: the same of masks.
        file_column: of the images.
        label_column: of the labels.
        mask_column: of grey masks, white on the object that decides the label, or None; an empty cell is an image
            that nobody marked. A mask has the size of its image and is resized and cropped as that is, to the nearest
            pixel.
        split_column: of "train", "val" or "test", or None.
        class_list: names of all classes, in the order of their indices. None takes those of the network that the
            images are for; without one, the names in the table, sorted, or numbers where the labels are indices.
        geometry: how images are resized and cropped. None does it as the network wants that they are for; without
            one, 224 pixels of 256.
        channels: 3 for colour, 1 for grey.
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
    geometry: Geometry | None = None
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
        labels = sorted({label for row in self._rows() for label in row.labels})
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
        rows = self._rows()
        return tuple(split for split in super().splits if self._members(rows, split))

    def for_network(self, classes: Sequence[str], geometry: Geometry | None) -> ImageTable:
        """Return the same images with the network's class names and geometry, where these are not given."""
        names = tuple(classes) if self.class_list is None else self.class_list
        return dataclasses.replace(self, class_list=names, geometry=self.geometry or geometry)

    def split(self, split: Split) -> TableFiles | MaskedTableFiles:
        """Return the images of one split, read from disk as they are asked for."""
        self.check_split(split)
        listed = self._rows()
        rows = self._members(listed, split)
        if not rows:
            raise fail("split", f"images for {split!r} in {self._path()}", "none")
        index = ClassIndex(self.classes)
        found = [(row, tuple(index.find(label, "label_column", row.where) for label in row.labels)) for row in rows]
        geometry = self.geometry or _DEFAULT
        if self.mask_column is None:
            return readable(found, lambda part: TableFiles(part, geometry, self.channels), self.skip_broken)
        masked = readable(found, lambda part: MaskedTableFiles(part, geometry, self.channels), self.skip_broken)
        for place in range(len(masked)):
            masked.mask(place)
        return masked

    def fingerprint(self) -> dict[str, Any]:
        """Return what the table and its image files tell, see `robustsigma.fingerprint.files`."""
        rows = self._rows()
        images, masks = {row.path for row in rows}, {row.mask for row in rows if row.mask is not None}
        root, table = Path(self.root), self._path()
        found = {"images": (images, root / self.images), "masks": (masks, root / self.masks)}
        listed = {name: files(sorted(paths), folder) for name, (paths, folder) in found.items()}
        return {"table": files([table], table.parent), **listed}

    def _path(self) -> Path:
        return Path(self.root) / self.table

    def _rows(self) -> list[Listed]:
        columns = Columns(self.file_column, self.label_column, self.mask_column, self.split_column)
        root = Path(self.root)
        return read_table(self._path(), columns, images=root / self.images, masks=root / self.masks)

    def _members(self, rows: list[Listed], split: Split) -> list[Listed]:
        """Return the rows of a split."""
        if self.split_column is None:
            if self.test_fraction == 1:
                return rows if split == "test" else []
            return self._drawn(rows, self.test_fraction)[split]
        parts: dict[str, list[Listed]] = {name: [] for name in super().splits}
        for row in rows:
            if row.split not in parts:
                raise fail("split_column", f"train, val or test {row.where}", repr(row.split))
            parts[row.split].append(row)
        if not parts["test"]:
            parts["test"], parts["val"] = parts["val"], []
        if not parts["val"] and len(parts["train"]) > 1:
            parts |= {name: part for name, part in self._drawn(parts["train"], 0).items() if name != "test"}
        return parts[split]

    def _drawn(self, rows: list[Listed], test_fraction: float) -> dict[Split, list[Listed]]:
        counts = [max(1, round(len(rows) * share)) if share else 0 for share in (self.val_fraction, test_fraction)]
        if sum(counts) >= len(rows):
            raise fail("table", f"enough rows to split in {self._path()}", len(rows))
        names = sorted({row.labels[0] for row in rows})
        drawn = stratified([names.index(row.labels[0]) for row in rows], counts[0], counts[1], self.seed)
        return {name: [rows[i] for i in part] for name, part in drawn.items()}
