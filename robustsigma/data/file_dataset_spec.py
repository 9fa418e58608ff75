"""`FileDatasetSpec`: base class of the datasets whose images are files on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from robustsigma.data.dataset_spec import DatasetSpec, Split
from robustsigma.data.image_files import FileDataset, ImageRow, MaskedFileDataset, Resize, verify_images
from robustsigma.data.splitting import missing_class_notes, split_by_fraction
from robustsigma.engine.validation import fail, integer, warn

Manifest = dict[Split, list[ImageRow]]
T = TypeVar("T")


class FileDatasetSpec(DatasetSpec):
    """A dataset whose images are files on disk. A subclass lists the files of each split in `_manifest`.

    Subclasses have the fields `val_fraction` and `seed`, and may have `channels` (3 for color, 1 for gray) and
    `skip_broken` (leave unreadable images out, with a warning).
    """

    _argument = "root"  # named by errors and warnings
    _upright = True  # whether images are turned as their EXIF orientation says
    channels: int = 3
    skip_broken: bool = False

    @property
    @abstractmethod
    def _manifest(self) -> Manifest:
        """The images of each split. The first access warns once about what a user may not expect."""

    @property
    @abstractmethod
    def _resize(self) -> Resize:
        """How images are resized and cropped."""

    @property
    @abstractmethod
    def _place(self) -> Path:
        """Folder or table of the images, for messages."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        size = self._resize if isinstance(self._resize, int) else self._resize.size
        return self.channels, size, size

    def split(self, split: Split) -> FileDataset:
        """Return the images of one split, read from disk when an item is asked for.

        Every image and mask is decoded once here, so that a broken file is reported before training starts.

        Raises:
            ValueError: a split without images, or an unreadable image or mask.
        """
        self.check_split(split)
        if split not in self.splits:
            raise fail("split", f"images for {split!r} in {self._place}", "none")
        masked = any(row.mask is not None for rows in self._manifest.values() for row in rows)
        make = MaskedFileDataset if masked else FileDataset
        dataset = make(self._manifest[split], self._resize, self.channels, upright=self._upright)
        return verify_images(dataset, self.skip_broken)

    def _check_channels(self) -> None:
        if integer("channels", self.channels, 1) not in (1, 3):
            raise fail("channels", "1 or 3", self.channels)

    def _draw(self, rows: Sequence[T], labels: Sequence[Any], test_fraction: float) -> dict[Split, list[T]]:
        """Split rows at random."""
        fractions = self.val_fraction, test_fraction  # type: ignore[attr-defined]
        seed: int = self.seed  # type: ignore[attr-defined]
        return split_by_fraction(rows, labels, *fractions, seed, name=self._argument, where=self._place)

    def _warn(self, notes: Sequence[str], manifest: Manifest, checked: Sequence[Split]) -> None:
        """Warn once of notes, and of classes that the checked splits lack."""
        labels = {split: [row.labels[0] for row in manifest[split]] for split in checked}
        told = [*notes, *missing_class_notes(self.classes, labels)]
        if told:
            warn(f"{self._argument}: {'; '.join(told)} [{self._place}]")
