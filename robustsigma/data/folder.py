"""Images in one folder per class, and the stratified split that other sources share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustsigma.data.class_index import ClassIndex, are_indices, are_wnids, class_names
from robustsigma.data.files import FileDataset, Files, image_files, readable
from robustsigma.data.masked import MaskedFiles, partners
from robustsigma.data.source import Source, Split
from robustsigma.engine.validation import integer
from robustsigma.fingerprint import files as fingerprint_of_files
from robustsigma.geometry import Geometry

_SIDE = 64


def stratified(labels: Sequence[int] | NDArray[np.int64], val: int, test: int, seed: int) -> dict[Split, list[int]]:
    """Split indices at random, every class in proportion.

    Args:
        labels: class of each image.
        val: how many images go to "val".
        test: how many go to "test"; the rest is "train".
        seed: of the choice.

    Returns:
        Increasing indices per split; they are disjoint and cover everything.
    """
    of = np.asarray(labels)
    if val < 0 or test < 0 or val + test >= len(of):
        raise ValueError(f"val and test: expected to leave training images of {len(of)}, got {val} and {test}")
    rng = np.random.default_rng(seed)
    rank = np.empty(len(of))
    for label in np.unique(of):
        members = rng.permutation(np.flatnonzero(of == label))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(rank, kind="stable")
    parts: dict[Split, NDArray[np.int64]] = {
        "test": order[:test],
        "val": order[test : test + val],
        "train": order[test + val :],
    }
    return {name: sorted(part.tolist()) for name, part in parts.items()}


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
class ImageFolder(Source):
    """Images on disk, one subfolder per class, or the same inside train/ and test/ (and optionally val/).

    Every image and mask of a split is decoded once when the split is asked for, so that a broken file shows before
    training starts and not during it.

    Args:
        root: the folder.
        size: the shorter side is resized to it and the centre cropped. None is 64; or, where the images are for a
            network that was trained elsewhere, as it wants them.
        channels: 3 for colour, 1 for grey.
        val_fraction: share of images, or of train/ where there is no val/, that becomes "val".
        test_fraction: share of images that becomes "test" where there is no test/; 1 has all as "test", for networks
            that were trained elsewhere.
        seed: of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError.
        masks: folder of grey masks, white on the object that decides the label, or None. A mask has the subfolders,
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
    geometry: Geometry | None = None
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
        return self._folders() if self.class_list is None else self.class_list

    def for_network(self, classes: Sequence[str], geometry: Geometry | None) -> ImageFolder:
        """Return the same images with the network's geometry and classes, where these are not given."""
        fit = self.geometry or (geometry if self.size is None else None)
        names, own = self.class_list, self._folders()
        called = are_indices(own) or are_wnids(own) or set(own) <= set(classes)
        if names is None and called:
            names = tuple(classes)
        return dataclasses.replace(self, geometry=fit, class_list=names)

    def _folders(self) -> tuple[str, ...]:
        folder = self._part("train") if self._is_split() else Path(self.root)
        if not folder.is_dir():
            raise ValueError(f"root: expected an existing folder, got {self.root}")
        names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
        if len(names) < 2:
            raise ValueError(f"root: expected at least two class folders in {folder}, got {len(names)}")
        return names

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, size, size)."""
        fit = self._fit
        size = fit.size if isinstance(fit, Geometry) else fit
        return self.channels, size, size

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images."""
        return ("test",) if self.test_fraction == 1 and not self._is_split() else super().splits

    @property
    def _fit(self) -> int | Geometry:
        return self.geometry or self.size or _SIDE

    def split(self, split: Split) -> FileDataset:
        """Return the images of one split, read from disk as they are asked for."""
        self.check_split(split)
        files = self._files(split)
        if not files:
            raise ValueError(f"root: expected images for {split!r} in {self.root}, got none")
        if self.masks is None:
            return readable(files, self._dataset, self.skip_broken)
        masks = self._masks(Path(self.masks))
        masked = readable(
            files, lambda part: MaskedFiles(*_unzip(part), self._fit, self.channels, masks), self.skip_broken
        )
        for index in range(len(masked)):
            masked.mask(index)
        return masked

    def fingerprint(self) -> dict[str, Any]:
        """Return what the names, sizes and contents of the image files tell, see `robustsigma.fingerprint.files`."""
        folders = {"images": Path(self.root), **({"masks": Path(self.masks)} if self.masks else {})}
        return {name: fingerprint_of_files(image_files(folder), folder) for name, folder in folders.items()}

    def _dataset(self, files: Files) -> FileDataset:
        return FileDataset(*_unzip(files), self._fit, self.channels)

    def _masks(self, folder: Path) -> dict[Path, Path]:
        if not folder.is_dir():
            raise ValueError(f"masks: expected an existing folder, got {folder}")
        root = Path(self.root)
        parts = [self._part("train"), self._part("val"), self._part("test")] if self._is_split() else [root]
        if any(folder.resolve().is_relative_to(part.resolve()) for part in parts):
            raise ValueError(f"masks: expected a folder that is not among the images, got {folder}")
        images = [path for part in parts for path in image_files(part)]
        return partners(images, root, image_files(folder), folder)

    def _part(self, split: Split) -> Path:
        return Path(self.root) / split

    def _is_split(self) -> bool:
        return self._part("train").is_dir() and self._part("test").is_dir()

    def _files(self, split: Split) -> Files:
        if not self._is_split():
            files = self._scan(Path(self.root))
            if self.test_fraction == 1:
                return files if split == "test" else []
            val, test = self.val_fraction, self.test_fraction
        elif split == "test" or (split == "val" and self._part("val").is_dir()):
            return self._scan(self._part(split))
        else:
            files = self._scan(self._part("train"))
            val, test = 0.0 if self._part("val").is_dir() else self.val_fraction, 0.0
        counts = [max(1, round(len(files) * share)) if share else 0 for share in (val, test)]
        if sum(counts) >= len(files):
            raise ValueError(f"root: expected enough images to split in {self.root}, got {len(files)}")
        parts = stratified([label for _, label in files], counts[0], counts[1], self.seed)
        return [files[i] for i in parts[split]]

    def _scan(self, folder: Path) -> Files:
        names = self._folders()
        found = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."}
        if not found <= set(names):
            raise ValueError(f"root: expected only classes of train/ in {folder}, got {sorted(found - set(names))}")
        if self.class_list is None:
            labels = {name: label for label, name in enumerate(names)}
        else:
            index = ClassIndex(self.class_list)
            labels = {name: index.find(name, "root", f"as a folder of {folder}") for name in names}
        return [(path, label) for name, label in labels.items() for path in image_files(folder / name)]


def _unzip(files: Files) -> tuple[list[Path], list[int]]:
    return [path for path, _ in files], [label for _, label in files]
