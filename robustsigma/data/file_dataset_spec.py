"""Base class of the datasets whose images are files on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from robustsigma.data.dataset_spec import DatasetSpec, Split
from robustsigma.data.image_files import FileDataset, ImageRow, MaskedFileDataset, Resize, verify_images
from robustsigma.engine.validation import fail, integer

Manifest = Mapping[Split, list[ImageRow]]


def check_channels(channels: int) -> None:
    """Raise ValueError unless there is one channel or three."""
    if integer("channels", channels, 1) not in (1, 3):
        raise fail("channels", "1 or 3", channels)


class FileDatasetSpec(DatasetSpec):
    """A dataset whose images are files on disk: a subclass lists the files of each split.

    Attributes:
        channels: 3 for color, 1 for gray.
        skip_broken: whether unreadable images are left out, with a warning.
    """

    channels: int = 3
    skip_broken: bool = False

    @property
    @abstractmethod
    def _manifest(self) -> Manifest:
        """The rows of each split. The first access warns once about what a user may not expect."""

    @property
    @abstractmethod
    def _resize(self) -> Resize:
        """How images are resized and cropped."""

    @property
    @abstractmethod
    def _place(self) -> Path:
        """Folder or table of the images, for messages."""

    @property
    def _has_masks(self) -> bool:
        return False

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
        make = MaskedFileDataset if self._has_masks else FileDataset
        return verify_images(make(self._manifest[split], self._resize, self.channels), self.skip_broken)
