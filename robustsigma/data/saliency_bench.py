"""Saliency-Bench: images in class folders, and what people marked in them as tables of numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from robustsigma.data.annotations import Row, is_name, read_rows
from robustsigma.data.class_folders import read_classes, skipped_notes, uncovered
from robustsigma.data.files import FileDataset, Files, Found, scan, subfolders, to_tensor, verify_images
from robustsigma.data.folder import by_shares, check_settings
from robustsigma.data.masked import area_average
from robustsigma.data.source import DatasetSpec, Split
from robustsigma.engine.validation import fail, several
from robustsigma.runs.fingerprint import files as fingerprint_of_files


class AnnotatedFiles(FileDataset):
    """Image files squeezed to a square, with the rows of their annotations; both are read when asked for.

    Args:
        files: image files and their labels.
        size: side to resize to; nothing is cropped.
        rows: by the image's file name.
    """

    def __init__(self, files: Files, size: int, rows: Mapping[str, Row]) -> None:
        super().__init__([path for path, _ in files], [label for _, label in files], size, 3)
        self.rows = [rows.get(path.name) for path in self.paths]

    def tensor(self, image: Image.Image) -> Tensor:
        """Return an opened image as float (3, size, size) in [0, 1]."""
        return to_tensor(image, 3, self.size, squeeze=True)

    def mask(self, index: int) -> Tensor:
        """Return float (size, size) in [0, 1], the annotation's area average; zeros where nobody marked anything."""
        row = self.rows[index]
        if row is None:
            return torch.zeros(self.size, self.size)
        return area_average(row.numbers(), self.size).float().clamp(0, 1)


@dataclass(frozen=True)
class SaliencyBench(DatasetSpec):
    """A folder in the published layout of Saliency-Bench (Zhang et al., arXiv 2310.08537, xaidataset.github.io).

    All of its datasets have it, such as nodules in the lung (the SIGMA paper's Disease-XAI) and prohibited items in
    baggage (its Security-XAI, whose annotations are boxes).

    `root/image/CLASS/` and its subfolders hold the images of a class; `root/attention_label/*.csv` are tables with the
    columns `img_idx`, the name of an image's file, and `attention`, a two-dimensional JSON array of numbers in [0, 1],
    which spans the whole image. An image without a row is one that nobody marked: its mask is all zero. Images are
    squeezed to a square and never turned by what EXIF says, as in the benchmark's own loader, since annotations follow
    the stored pixels; gray images become color, transparency is dropped. Annotations are resized by area average and
    stay soft: metrics decide from where on a pixel counts as marked. The benchmark splits 60:20:20 at random and does
    not publish its split; this one is stratified and derives from the seed.

    Every image and annotation of a split is read once when the split is asked for. Hidden files and folders are
    skipped. The first split warns once of other skipped files, of classes without a test image, and of rows whose
    image is in no class folder, which are left out. The folder is listed once: make a new `SaliencyBench` after
    changing it.

    Args:
        root: the folder.
        class_list: names of the class folders to use; a label is the place of a class in it. None uses all, sorted.
        size: side of the images and masks in pixels.
        val_fraction: share of images that becomes "val".
        test_fraction: share of images that becomes "test".
        seed: of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError.
            An unreadable annotation is an error even so.
    """

    root: str
    class_list: tuple[str, ...] | None = None
    size: int = 224
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 0
    skip_broken: bool = False

    def __post_init__(self) -> None:
        check_settings(self.size, self.val_fraction, self.test_fraction, self.seed)
        if self.class_list is None:
            return
        several("class_list", self.class_list)
        names = tuple(self.class_list)
        if len(names) < 2 or len(set(names)) < len(names) or not all(map(is_name, names)):
            raise fail("class_list", "at least two names of folders, each once", list(names))
        object.__setattr__(self, "class_list", names)  # a list would make the source unhashable

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, in the given order or sorted."""
        return tuple(self._images[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self.size, self.size

    def split(self, split: Split) -> AnnotatedFiles:
        """Return the images of one split with their masks, read from disk as they are asked for."""
        self.check_split(split)
        by_split, rows = self._read
        dataset = verify_images(by_split[split], lambda part: AnnotatedFiles(part, self.size, rows), self.skip_broken)
        for row in dataset.rows:
            if row is not None:
                row.numbers()
        return dataset

    def fingerprint(self) -> dict[str, Any]:
        """Return what the images and tables tell, see `robustsigma.runs.fingerprint.files`."""
        root = Path(self.root)
        found = {"images": scan(root / "image").images, "tables": sorted((root / "attention_label").glob("*.csv"))}
        return {name: fingerprint_of_files(paths, root) for name, paths in found.items()}

    @cached_property
    def _images(self) -> tuple[dict[str, list[Path]], list[str]]:
        """The images of each class, and what a user may not expect."""
        folder, skipped = self._folder, Found([], [])
        if not folder.is_dir():
            raise fail("root", "a folder with the subfolders image and attention_label", f"no folder {folder}")
        found = subfolders(folder)
        names = found if self.class_list is None else self.class_list
        missing = [name for name in names if name not in found]
        if missing:
            raise fail("class_list", f"folders of {folder}: {', '.join(found) or 'none'}", missing)
        images = read_classes(folder, names, self.class_list or (), skipped)
        return images, skipped_notes(skipped, folder)

    @cached_property
    def _read(self) -> tuple[dict[Split, Files], dict[str, Row]]:
        """The image files by split and the annotations. It warns once of what a user may not expect."""
        images, notes = self._images
        files = [(path, label) for label, paths in enumerate(images.values()) for path in paths]
        labels = [label for _, label in files]
        drawn = by_shares(labels, self.val_fraction, self.test_fraction, self.seed, name="root", where=self._folder)
        rows = read_rows(Path(self.root) / "attention_label")
        others = [scan(self._folder / name).images for name in subfolders(self._folder) if name not in images]
        told = [*notes, *_match(rows, [path for paths in (*images.values(), *others) for path in paths])]
        told += uncovered(self.classes, {"test": [labels[i] for i in drawn["test"]], "train": labels})
        if told:
            warnings.warn(f"root: {'; '.join(told)} [{self.root}]", stacklevel=1)
        return {split: [files[i] for i in part] for split, part in drawn.items()}, rows

    @property
    def _folder(self) -> Path:
        return Path(self.root) / "image"


def _match(rows: Mapping[str, Row], images: list[Path]) -> list[str]:
    """Return notes of rows without an image; raise if a row could be of two images, or none is of any."""
    by_name: dict[str, Path] = {}
    for path in images:
        first = by_name.setdefault(path.name, path)
        if first != path and path.name in rows:
            raise fail("root", f"one image for the annotation in {rows[path.name].where}", f"{first} and {path}")
    lost = [name for name in rows if name not in by_name]
    if not lost:
        return []
    message = f"{len(lost)} of {len(rows)} annotations are of images that no class folder has, the first of {lost[0]}"
    if len(lost) == len(rows):
        raise fail("root", "annotations that name the files of images", message)
    return [f"{message} ({rows[lost[0]].where}); left out"]
