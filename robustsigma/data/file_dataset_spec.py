"""`FileDatasetSpec`: base class of the datasets whose images are files, listed once and decoded when they are read."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from robustsigma.data.class_names import ClassIndex, order_notes
from robustsigma.data.csv_tables import Annotation
from robustsigma.data.dataset_spec import DatasetSpec, Split
from robustsigma.data.folder_scan import shorten
from robustsigma.data.image_files import (
    FileDataset,
    ImageRow,
    MaskedFileDataset,
    Resize,
    Rows,
    fingerprint_of_files,
    without_broken,
)
from robustsigma.data.splitting import stratified
from robustsigma.engine.validation import fail, integer, warn

Kind = TypeVar("Kind", bound="FileDatasetSpec")


class ListedImage(NamedTuple):
    """An image as a folder or a table lists it; `where` is its place there, for messages.

    `classes` are all correct ones, each by index, WordNet identifier or name.
    """

    path: str
    classes: tuple[str, ...]
    mask: str | Annotation | None
    where: str


class Listing(NamedTuple):
    """All images by split (the only key is None if nothing says it), warnings, and names of classes if known."""

    images: dict[Split | None, list[ListedImage]]
    notes: list[str]
    classes: tuple[str, ...] = ()


class FileDatasetSpec(DatasetSpec):
    """A dataset whose images are files on disk. A subclass lists them in `_listing`.

    Subclasses have the fields `val_fraction`, `test_fraction` and `seed`, and may have `channels` (3 for color, 1 for
    gray), `skip_broken` (leave unreadable images out, with a warning) and `class_list` (names of all classes).
    """

    _argument = "root"  # named by errors and warnings
    _label_argument = "root"  # named by the error of an unknown class
    _upright = True  # whether images are turned as their EXIF orientation says
    channels: int = 3
    skip_broken: bool = False
    class_list: tuple[str, ...] | None = None
    val_fraction: float
    test_fraction: float
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: a checkpoint or another process gets no list of a million files."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @property
    @abstractmethod
    def _listing(self) -> Listing:
        """All images, listed once without decoding them."""

    @property
    @abstractmethod
    def _resize(self) -> Resize:
        """How images are resized and cropped."""

    @property
    @abstractmethod
    def _place(self) -> Path:
        """Folder or table of the images, for messages."""

    @property
    def _tables(self) -> list[Path]:
        return []

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        size = self._resize if isinstance(self._resize, int) else self._resize.size
        return self.channels, size, size

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that have images."""
        return tuple(split for split in super().splits if split in self._parts)

    def split(self, split: Split) -> FileDataset:
        """Return the images of one split. A file is read when its item is asked for.

        Raises:
            ValueError: a split without images. An unreadable image or mask is an error when it is read; with
                `skip_broken`, all images are decoded here, and unreadable ones are left out.
        """
        self.check_split(split)
        if split not in self.splits:
            raise fail("split", f"images for {split!r} in {self._place}", "none")
        if split not in self._datasets:
            masked = any(rows.masks for rows in self._manifest.values())
            make = MaskedFileDataset if masked else FileDataset
            dataset = make(self._manifest[split], self._resize, self.channels, upright=self._upright)
            self._datasets[split] = without_broken(dataset) if self.skip_broken else dataset
        return self._datasets[split]

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the files, without decoding an image; see `fingerprint_of_files`."""
        rows = [row for rows in self._listing.images.values() for row in rows]
        masks = {row.mask for row in rows if isinstance(row.mask, str)}
        found = {"images": {row.path for row in rows}, "masks": masks, "tables": {*map(str, self._tables)}}
        return {name: fingerprint_of_files([*paths]) for name, paths in found.items() if paths}

    @cached_property
    def _datasets(self) -> dict[Split, FileDataset]:
        """The splits that were asked for."""
        return {}

    @cached_property
    def _parts(self) -> dict[Split, list[ListedImage]]:
        parts = {split: rows for split, rows in self._listing.images.items() if split is not None}
        if not parts:
            whole = self._listing.images[None]
            return {"test": whole} if self.test_fraction == 1 else self._draw(whole, self.test_fraction)
        train = parts.get("train", [])
        if "val" not in parts and len(train) > len({row.classes[0] for row in train}):
            drawn = self._draw(train, 0)
            parts |= {"train": drawn["train"], "val": drawn["val"]}
        return parts

    @cached_property
    def _manifest(self) -> dict[Split, Rows]:
        """The images of each split. The first access warns once about what a user may not expect."""
        index = ClassIndex(self.classes)
        known: dict[tuple[str, ...], tuple[int, ...]] = {}

        def labels(row: ListedImage) -> tuple[int, ...]:
            if row.classes not in known:
                known[row.classes] = tuple(index.find(each, self._label_argument, row.where) for each in row.classes)
            return known[row.classes]

        manifest = {
            split: Rows(ImageRow(row.path, labels(row), row.mask) for row in rows)
            for split, rows in self._parts.items()
        }
        checked = [split for split in manifest if split != "val" or "val" in self._listing.images]
        lacking = _missing_class_notes(self.classes, {s: manifest[s].labels.tolist() for s in checked})
        order = order_notes(self.classes) if self.class_list is None else []
        notes = [*self._listing.notes, *order, *lacking]
        if notes:
            warn(f"{self._argument}: {'; '.join(notes)} [{self._place}]")
        return manifest

    def _draw(self, rows: Sequence[ListedImage], test_fraction: float) -> dict[Split, list[ListedImage]]:
        """Split rows at random, every class in proportion. A fraction above zero gives at least one row."""
        val, test = (max(1, round(len(rows) * each)) if each else 0 for each in (self.val_fraction, test_fraction))
        ranks = {name: rank for rank, name in enumerate(sorted({row.classes[0] for row in rows}))}
        if val + test > len(rows) - len(ranks):
            left = f"and to leave one for training in each of {len(ranks)} classes"
            raise fail(self._argument, f"enough images to split in {self._place} {left}", len(rows))
        parts = stratified([ranks[row.classes[0]] for row in rows], val, test, self.seed)
        return {split: [rows[i] for i in part] for split, part in parts.items()}

    def _sharing(self: Kind, other: Kind) -> Kind:
        """Return another spec of the same files, which need not be listed again."""
        if "_listing" in self.__dict__:
            other.__dict__["_listing"] = self._listing
        return other

    def _check_settings(self, *, only_test: bool = False) -> None:
        """Raise ValueError for bad fields. With `only_test`, `test_fraction` may be 1."""
        if integer("channels", self.channels, 1) not in (1, 3):
            raise fail("channels", "1 or 3", self.channels)
        check_fraction("val_fraction", self.val_fraction)
        if not (only_test and self.test_fraction == 1):
            check_fraction("test_fraction", self.test_fraction)
            if self.val_fraction + self.test_fraction >= 1:
                raise fail("val_fraction and test_fraction", "a sum below 1", self.val_fraction + self.test_fraction)
        integer("seed", self.seed, 0)


def check_fraction(name: str, value: Any) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise fail(name, "a fraction between 0 and 1, both excluded", value)


def _missing_class_notes(classes: Sequence[str], labels: Mapping[Split, Iterable[int]]) -> list[str]:
    """Return a note for each split that lacks a class: any class in "train", one that another split has elsewhere."""
    present = {split: set(each) for split, each in labels.items()}
    notes = []
    for split, found in present.items():
        wanted = set(range(len(classes))) if split == "train" else set().union(*present.values())
        missing = [classes[label] for label in sorted(wanted - found)]
        if missing:
            what = {"train": "training", "val": "validation", "test": "test"}[split]
            notes.append(f"{len(missing)} of {len(classes)} classes without a {what} image: {shorten(missing)}")
    return notes
