"""Images in one folder per class, and the stratified split that other sources share."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.data.class_folders import Tree, read_tree, skipped_files, uncovered
from robustsigma.data.class_index import ClassIndex, are_indices, are_wnids, class_names
from robustsigma.data.files import FileDataset, Files, scan, verify_images
from robustsigma.data.masked import MaskedFiles, partners
from robustsigma.data.source import DatasetSpec, Split
from robustsigma.engine.validation import fail, integer
from robustsigma.resize_crop import ResizeCrop
from robustsigma.runs.fingerprint import files as fingerprint_of_files

_SIDE = 64


def stratified(labels: Sequence[int] | NDArray[np.int64], val: int, test: int, seed: int) -> dict[Split, list[int]]:
    """Split indices at random, every class in proportion and with at least one image in "train".

    Args:
        labels: class of each image.
        val: how many images go to "val".
        test: how many go to "test"; the rest is "train".
        seed: of the choice.

    Returns:
        Increasing indices per split; they are disjoint and cover everything.
    """
    of = np.asarray(labels)
    classes = len(np.unique(of))
    if val < 0 or test < 0 or val + test > len(of) - max(1, classes):
        expected = f"to leave a training image for each of {classes} classes"
        raise fail("val and test", expected, f"{val} and {test} of {len(of)} images")
    rng = np.random.default_rng(seed)
    rank = np.empty(len(of))
    for label in np.unique(of):
        members = rng.permutation(np.flatnonzero(of == label))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
        rank[members[-1]] += 1
    order = np.argsort(rank, kind="stable")
    parts: dict[Split, NDArray[np.int64]] = {
        "test": order[:test],
        "val": order[test : test + val],
        "train": order[test + val :],
    }
    return {name: sorted(part.tolist()) for name, part in parts.items()}


def by_shares(
    labels: Sequence[int], val_fraction: float, test_fraction: float, seed: int, *, name: str, where: Path
) -> dict[Split, list[int]]:
    """Split indices like `stratified`, by shares; one that is not zero gives at least one image.

    Args:
        labels: class of each image.
        val_fraction: share of images that becomes "val".
        test_fraction: share of images that becomes "test".
        seed: of the choice.
        name: of the argument that names the images, for the error.
        where: the images are, for the error.

    Raises:
        ValueError: too few images to leave a training image for each class.
    """
    val, test = (max(1, round(len(labels) * share)) if share else 0 for share in (val_fraction, test_fraction))
    classes = len(set(labels))
    if val + test > len(labels) - classes:
        expected = f"enough images to split in {where} and to leave one for training in each of {classes} classes"
        raise fail(name, expected, len(labels))
    return stratified(labels, val, test, seed)


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 < value < 1."""
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name}: expected a fraction between 0 and 1, both excluded, got {value}")


def check_settings(size: int, val_fraction: float, test_fraction: float, seed: int, *, whole: bool = False) -> None:
    """Raise ValueError unless a folder can be read and split so; with `whole`, `test_fraction` may be 1."""
    integer("size", size, 1)
    check_fraction("val_fraction", val_fraction)
    everything = whole and isinstance(test_fraction, (int, float)) and test_fraction == 1
    if not everything:
        check_fraction("test_fraction", test_fraction)
    if not everything and val_fraction + test_fraction >= 1:
        total = val_fraction + test_fraction
        raise ValueError(f"val_fraction and test_fraction: expected a sum below 1, got {total}")
    integer("seed", seed, 0)


def check_channels(channels: int) -> None:
    """Raise ValueError unless there is one channel or three."""
    integer("channels", channels, 1)
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")


@dataclass(frozen=True)
class ImageFolder(DatasetSpec):
    """Images on disk, one subfolder per class, or the same inside train/, val/ and test/.

    Split folders are recognized by any common name in upper or lower case: train or training; val, valid, validation
    or dev; test, testing, eval or evaluation; also "train_set" and "test_set". Without a test folder, the validation
    folder is the test split. Without a validation folder, its images are drawn from the training images. Split folders
    beside other folders are an error.

    Images are found as by `torchvision.datasets.ImageFolder`, in subfolders of a class folder too, except that hidden
    files and folders are skipped and that all suffixes count that Pillow can read, with those of its plugins. A class
    without an image is an error. The first split warns once of skipped files, of val/ as the test split and of classes
    without a training or test image. The folder is listed once: make a new `ImageFolder` after changing it.

    Every image and mask of a split is decoded once when the split is asked for, so that a broken file shows before
    training starts and not during it.

    Args:
        root: the folder.
        size: the shorter side is resized to it and the center cropped. None is 64; or, where the images are for a
            network that was trained elsewhere, as it wants them.
        channels: 3 for color, 1 for gray.
        val_fraction: share of images, or of train/ where there is no val/, that becomes "val".
        test_fraction: share of images that becomes "test" where there is no test/; 1 has all as "test", for networks
            that were trained elsewhere.
        seed: of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError.
        masks: folder of gray masks, white on the object that decides the label, or None. A mask has the subfolders,
            the name (whatever its suffix) and the size of its image and is resized and cropped as that is, which
            makes its edges soft; with a `geometry`, to the nearest pixel. Nobody marked an image without a mask: its
            mask is all zero. An unreadable mask is an error even with `skip_broken`.
        geometry: how images are resized and cropped, instead of `size`.
        class_list: names of all classes, in the order of the labels; folders are called by these names, by indices, or
            by WordNet identifiers where they are ImageNet's 1,000. None takes those of the network that the images are
            for, if the folders are called so; else the folders' names, sorted.
    """

    root: str
    size: int | None = None
    channels: int = 3
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    skip_broken: bool = False
    masks: str | None = None
    geometry: ResizeCrop | None = None
    class_list: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_channels(self.channels)
        side = _SIDE if self.size is None else self.size
        check_settings(side, self.val_fraction, self.test_fraction, self.seed, whole=True)
        if self.size is not None and self.geometry is not None:
            raise ValueError("size: expected a number of pixels, or a geometry instead, got both")
        if self.class_list is not None:
            object.__setattr__(self, "class_list", class_names("class_list", self.class_list))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: those given, or the class folders', sorted."""
        return self._folders if self.class_list is None else self.class_list

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> ImageFolder:
        """Return the same images with the network's geometry and classes, where these are not given."""
        fit = self.geometry or (geometry if self.size is None else None)
        if self.class_list is not None:
            return dataclasses.replace(self, geometry=fit)
        named = dataclasses.replace(self, geometry=fit, class_list=tuple(classes))
        own = named._folders
        called = are_indices(own) or are_wnids(own) or set(own) <= set(classes)
        return named if called else dataclasses.replace(self, geometry=fit)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        fit = self._fit
        size = fit.size if isinstance(fit, ResizeCrop) else fit
        return self.channels, size, size

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images."""
        parts = self._tree.parts
        if None in parts:
            return ("test",) if self.test_fraction == 1 else super().splits
        return super().splits if "train" in parts else tuple(split for split in super().splits if split in parts)

    @property
    def _fit(self) -> int | ResizeCrop:
        return self.geometry or self.size or _SIDE

    def split(self, split: Split) -> FileDataset:
        """Return the images of one split, read from disk as they are asked for."""
        self.check_split(split)
        if split not in self.splits:
            raise fail("root", f"images for {split!r} in {self.root}", "none")
        by_split, masks = self._read
        if self.masks is None:
            return verify_images(by_split[split], self._dataset, self.skip_broken)
        masked = verify_images(
            by_split[split], lambda part: MaskedFiles(*_unzip(part), self._fit, self.channels, masks), self.skip_broken
        )
        for index in range(len(masked)):
            masked.mask(index)
        return masked

    def fingerprint(self) -> dict[str, Any]:
        """Return what names, sizes and contents of the image files tell, see `robustsigma.runs.fingerprint.files`."""
        folders = {"images": Path(self.root), **({"masks": Path(self.masks)} if self.masks else {})}
        return {name: fingerprint_of_files(scan(folder).images, folder) for name, folder in folders.items()}

    def _dataset(self, files: Files) -> FileDataset:
        return FileDataset(*_unzip(files), self._fit, self.channels)

    @cached_property
    def _tree(self) -> Tree:
        return read_tree(Path(self.root), self.class_list, None if self.masks is None else Path(self.masks))

    @property
    def _folders(self) -> tuple[str, ...]:
        return tuple(next(iter(self._tree.parts.values())))

    @cached_property
    def _read(self) -> tuple[dict[Split, Files], dict[Path, Path]]:
        """The image files by split and their masks. It warns once of what a user may not expect."""
        notes = list(self._tree.notes)
        by_split = self._files()
        checked = [split for split in by_split if split != "val" or "val" in self._tree.parts]
        notes += uncovered(self.classes, {split: [label for _, label in by_split[split]] for split in checked})
        masks = {} if self.masks is None else self._masks(Path(self.masks), notes)
        if notes:
            warnings.warn(f"root: {'; '.join(notes)} [{self.root}]", stacklevel=1)
        return by_split, masks

    def _masks(self, folder: Path, notes: list[str]) -> dict[Path, Path]:
        if not folder.is_dir():
            raise fail("masks", "an existing folder", folder)
        if any(folder.resolve().is_relative_to(part.resolve()) for part in self._tree.folders):
            raise fail("masks", "a folder that is not among the images", folder)
        images = [path for part in self._tree.parts.values() for paths in part.values() for path in paths]
        found = scan(folder)
        masks = partners(images, Path(self.root), found.images, folder)
        used = set(masks.values())
        lost = [path for path in found.images if path not in used]
        if lost:
            notes.append(f"{len(lost)} of {len(found.images)} masks are of no image, the first is {lost[0]}")
        if found.others:
            notes.append(f"masks: {skipped_files(found.others, folder)}")
        return masks

    def _files(self) -> dict[Split, Files]:
        parts: dict[Split | None, Files] = {}
        for split, folders in self._tree.parts.items():
            labels = self._labels(list(folders))
            parts[split] = [(path, labels[name]) for name, paths in folders.items() for path in paths]
        if None in parts and self.test_fraction == 1:
            return {"test": parts[None]}
        if None in parts:
            return self._drawn(parts[None], self.test_fraction)
        found: dict[Split, Files] = {split: files for split, files in parts.items() if split is not None}
        if "train" in found and "val" not in found:
            drawn = self._drawn(found["train"], 0)
            found |= {"train": drawn["train"], "val": drawn["val"]}
        return found

    def _drawn(self, files: Files, test_fraction: float) -> dict[Split, Files]:
        labels = [label for _, label in files]
        parts = by_shares(labels, self.val_fraction, test_fraction, self.seed, name="root", where=Path(self.root))
        return {split: [files[i] for i in part] for split, part in parts.items()}

    def _labels(self, names: Sequence[str]) -> dict[str, int]:
        if self.class_list is None:
            return {name: self._folders.index(name) for name in names}
        index = ClassIndex(self.class_list)
        return {name: index.find(name, "root", f"as a folder of {self.root}") for name in names}


def _unzip(files: Files) -> tuple[list[Path], list[int]]:
    return [path for path, _ in files], [label for _, label in files]
