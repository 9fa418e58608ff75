"""`ImageFolder`: images in one folder per class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robustsigma.data.class_names import are_indices, are_wnids, class_names
from robustsigma.data.file_dataset_spec import FileDatasetSpec, ListedImage, Listing
from robustsigma.data.folder_scan import FolderTree, read_tree, scan, skipped_files_note
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.validation import fail, integer

_DEFAULT_SIZE = 64


@dataclass(frozen=True)
class ImageFolder(FileDatasetSpec):
    """Images on disk, in one subfolder per class, or in the same inside train/, val/ and test/.

    Split folders are recognized by any common name in upper or lower case: train or training; val, valid, validation
    or dev; test, testing, eval or evaluation; also "train_set" and "test_set". Without a test folder, the validation
    folder is the test split. Without a validation folder, validation images are drawn from the training images. Split
    folders beside other folders are an error.

    Images are found as by `torchvision.datasets.ImageFolder`, also in subfolders of a class folder, with two
    differences: hidden files and folders are skipped, and all suffixes count that Pillow and its plugins can read. A
    class without an image is an error. The first split warns once about skipped files, about val/ as the test split
    and about classes without a training or test image. The folder is listed once, without decoding an image: make a new
    `ImageFolder` after changing it. An image that cannot be read is an error when it is read; `verify_images` finds
    such images in advance.

    Args:
        root: the folder.
        size: side in pixels: the shorter side is resized to it and the center cropped. None is 64, or what a trained
            network needs. JPEG files whose sides are at least four times as long are decoded at a smaller scale, three
            to six times as fast; pixels then differ by 0.2 to 1.4 of 255 in the mean. With a `geometry` none are.
        channels: 3 for color, 1 for gray.
        val_fraction: fraction of the images, or of train/ without a val/, that becomes "val".
        test_fraction: fraction of the images that becomes "test" without a test/. 1 has all images as "test", for
            networks that were trained elsewhere.
        seed: seed of the split.
        skip_broken: leave unreadable images out, with one warning that counts them, instead of raising ValueError. Each
            split is decoded once in advance for it.
        masks: folder of gray masks, white on the object that decides the label, or None. A mask has the subfolders,
            the name (with any suffix) and the size of its image. It is resized and cropped as its image is, which
            makes its edges soft; with a `geometry`, to the nearest pixel. An image without a mask is unannotated: its
            mask is all zero. Files of class indices are refused.
        geometry: how images are resized and cropped, instead of `size`.
        class_list: names of all classes, in the order of the labels. Folders are named by these names, by indices, or
            by WordNet identifiers if the classes are ImageNet's 1,000. None takes the names of a trained network if
            the folders are named so, else the sorted names of the folders, with a warning where "10" precedes "2".

    Example:
        >>> ImageFolder("photos", size=224, masks="masks").split("test").mask(0).shape
        torch.Size([224, 224])
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
        self._check_settings(only_test=True)
        if self.size is not None:
            integer("size", self.size, 1)
        if self.size is not None and self.geometry is not None:
            raise fail("size", "a number of pixels, or a geometry instead", "both")
        if self.class_list is not None:
            class_names("class_list", self.class_list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: `class_list`, or the sorted names of the class folders."""
        return self._listing.classes if self.class_list is None else self.class_list

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> ImageFolder:
        """Return the same images with the network's geometry and classes, if these are not given."""
        resize = self.geometry or (geometry if self.size is None else None)
        own = self._sharing(dataclasses.replace(self, geometry=resize))
        if self.class_list is not None:
            return own
        named = dataclasses.replace(own, class_list=tuple(classes))
        folders = named._listing.classes
        return named if are_indices(folders) or are_wnids(folders) or set(folders) <= set(classes) else own

    @property
    def _resize(self) -> int | ResizeCrop:
        return self.geometry or self.size or _DEFAULT_SIZE

    @property
    def _place(self) -> Path:
        return Path(self.root)

    @cached_property
    def _listing(self) -> Listing:
        tree = read_tree(Path(self.root), self.class_list, None if self.masks is None else Path(self.masks))
        notes, where = list(tree.notes), f"as a folder of {self.root}"
        masks = {} if self.masks is None else self._find_masks(tree, Path(self.masks), notes)
        images = {
            split: [
                ListedImage(path, classes, masks.get(path), where)
                for classes, paths in (((name,), paths) for name, paths in each.items())
                for path in paths
            ]
            for split, each in tree.images.items()
        }
        return Listing(images, notes, tuple(next(iter(tree.images.values()))))

    def _find_masks(self, tree: FolderTree, folder: Path, notes: list[str]) -> dict[str, str]:
        """Return the mask of each image that has one: the file of the same place and name, with any suffix."""
        if not folder.is_dir():
            raise fail("masks", "an existing folder", folder)
        if any(folder.resolve().is_relative_to(part.resolve()) for part in tree.folders):
            raise fail("masks", "a folder that is not among the images", folder)
        masks, others = scan(folder)
        by_name: dict[str, str] = {}
        for mask in masks:
            first = by_name.setdefault(_name(mask, str(folder)), mask)
            if first != mask:
                raise fail("masks", "one mask for an image", f"{first} and {mask}")
        image_of: dict[str, str] = {}
        for image in (path for part in tree.images.values() for paths in part.values() for path in paths):
            name = _name(image, self.root)
            first = image_of.setdefault(name, image)
            if first != image and name in by_name:
                raise fail("masks", f"one image for the mask {by_name[name]}", f"{first} and {image}")
        lost = [mask for name, mask in by_name.items() if name not in image_of]
        if len(lost) == len(masks):
            expected = f"masks in {folder} of the same subfolders and names as the images in {self.root}"
            raise fail("masks", expected, f"{len(masks)} masks and none of them an image's")
        if lost:
            notes.append(f"{len(lost)} of {len(masks)} masks are of no image, the first is {lost[0]}")
        if others:
            notes.append(f"masks: {skipped_files_note(others, folder)}")
        return {image_of[name]: mask for name, mask in by_name.items() if name in image_of}


def _name(path: str, folder: str) -> str:
    """Return the path of a file below a folder, without its suffix."""
    return str(Path(path).relative_to(folder).with_suffix(""))
