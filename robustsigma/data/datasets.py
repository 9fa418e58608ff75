"""`Datasets`: the torch datasets of a user as a `DatasetSpec`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from robustsigma.data.class_names import class_names
from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, PixelDataset, Split
from robustsigma.data.image_files import BROKEN, is_gray, to_bytes
from robustsigma.data.random_resized_crop import RandomResizedCrop
from robustsigma.engine import noise
from robustsigma.engine.network_state import as_pixels
from robustsigma.engine.validation import channels_last, extent, fail, plain, target_range


class _CheckedItems:
    """Checks of a user's items. Its subclasses have a name, a number of classes, and the shape of every image."""

    name: str
    classes: int
    shape: tuple[int, ...]

    def _checked(self, item: Any, name: str) -> tuple[Tensor, int]:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            got = f"{len(item)} parts" if isinstance(item, (tuple, list)) else type(item).__name__
            raise fail(name, "an item (image, label)", got)
        image, label = self._image(item[0], name), self._label(item[1], name)
        if self.shape and tuple(image.shape) != self.shape:
            raise fail(name, f"an image of shape {self.shape}", tuple(image.shape))
        return image, label

    def _image(self, image: Any, name: str) -> Tensor:
        if isinstance(image, Image.Image):
            gray = is_gray(image.mode)
            # A gray image among color images becomes color; color is never dropped.
            channels = 1 if gray and self.shape[:1] != (3,) else 3
            try:
                return to_bytes(image, channels, None)
            except BROKEN as error:
                raise fail(name, "a readable image, gray or RGB, of 8 or 16 bits", error) from error
        if not isinstance(image, Tensor):
            hint = "; torchvision.transforms.v2.functional.to_image makes a tensor of it"
            got = type(image).__name__ + (hint if isinstance(image, np.ndarray) else "")
            raise fail(name, "a tensor (C, H, W) or a PIL image", got)
        if image.ndim == 3 and image.shape[-1] == 3 and channels_last(tuple(image.shape)):
            raise fail(name, "an image (C, H, W)", f"{tuple(image.shape)}, channels last; use image.permute(2, 0, 1)")
        if image.ndim != 3 or 0 in image.shape or not (image.is_floating_point() or image.dtype == torch.uint8):
            raise fail(name, "a float or uint8 image (C, H, W)", f"{image.dtype} {tuple(image.shape)}")
        return image if image.dtype == torch.uint8 else image.float()

    def _label(self, label: Any, name: str) -> int:
        if isinstance(label, (Tensor, np.ndarray, np.generic)) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < self.classes:
            raise fail(f"label of {name}", f"an int from 0 to {self.classes - 1}", repr(label)[:80])
        return int(label)


class CheckedDataset(_CheckedItems, PixelDataset):
    """A user's dataset whose items are checked when they are read, with images as float in [0, 1].

    Args:
        inner: dataset of (image, label), the image a float tensor (C, H, W) in [0, 1], a uint8 tensor (C, H, W) or a
            PIL image. It may have the methods `mask(index)` and `correct_labels(index)` of `DatasetSpec.split`.
        name: name of the dataset, for errors.
        classes: number of classes.
        shape: (C, H, W) of every image, or () for that of the first one.

    Raises:
        ValueError: an item of another kind, here or when it is read. Perturbations check that a float image is in
            [0, 1].
    """

    decodes = False  # as far as anyone knows; and files that it has open may not be shared with other processes

    def __init__(self, inner: Any, name: str, classes: int, shape: tuple[int, ...] = ()) -> None:
        self.inner, self.name, self.classes, self.shape = inner, name, classes, shape
        self.shape = tuple(self[0][0].shape)

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, index: int, crop: RandomResizedCrop | None = None, seed: int = 0) -> tuple[Tensor, int]:
        """Return an image, uint8 where the user's is of bytes, and its label."""
        image, label = self._checked(self.inner[index], f"{self.name}[{index}]")
        return image if crop is None else crop.of_tensor(image, seed), label

    def __getattr__(self, name: str) -> Any:
        """Look up the optional methods of a dataset."""
        found = getattr(self.inner, name, None) if name in ("mask", "correct_labels") else None
        if not callable(found):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self._mask if name == "mask" else found

    def _mask(self, index: int) -> Tensor:
        mask, name = torch.as_tensor(self.inner.mask(index)).float(), f"mask({index}) of {self.name}"
        if tuple(mask.shape) != self.shape[1:]:
            raise fail(name, f"shape {self.shape[1:]}", tuple(mask.shape))
        low, high = extent(mask)
        if not 0 <= low <= high <= 1:
            raise fail(name, "values in [0, 1]", f"[{low:g}, {high:g}]")
        return mask


class CheckedStream(_CheckedItems, IterableDataset[tuple[Tensor, int, int]]):
    """A user's stream, whose items are checked when they are read, with images as float in [0, 1].

    Args:
        inner: stream of (image, label) or (image, label, key); images and labels as for `CheckedDataset`. A key is an
            integer from 0 on, or text, and the same for an image in each epoch. Without one, a hash of the pixels
            stands for it.
        name: name of the stream, for errors.
        classes: number of classes.
        shape: (C, H, W) of every image, or () for that of the first one.

    Attributes:
        has_keys: whether the keys are integers.

    Raises:
        ValueError: an empty stream, or an item of another kind, here or when it is read.
    """

    def __init__(self, inner: IterableDataset[Any], name: str, classes: int, shape: tuple[int, ...] = ()) -> None:
        self.inner, self.name, self.classes, self.shape = inner, name, classes, shape
        first = next(iter(inner), None)
        if first is None:
            raise fail(name, "a stream with at least one image, or None", "none")
        self.shape = tuple(self._keyed(first, 0)[0].shape)
        self.has_keys = len(first) == 3 and isinstance(plain(first[2]), int)

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        return ((as_pixels(image), label, key) for image, label, key in self.read())

    def read(self) -> Iterator[tuple[Tensor, int, int]]:
        """Yield items with images as uint8 where the user's are of bytes."""
        return (self._keyed(item, number) for number, item in enumerate(self.inner))

    def _keyed(self, item: Any, number: int) -> tuple[Tensor, int, int]:
        name = f"item {number} of {self.name}"
        pair = item[:2] if isinstance(item, (tuple, list)) and len(item) == 3 else item
        image, label = self._checked(pair, name)
        key = plain(item[2]) if len(item) == 3 else int(noise.pixel_hash(as_pixels(image)[None]))
        if isinstance(key, str):
            key = noise.name_key(key)
        elif not isinstance(key, int) or (len(item) == 3 and not 0 <= key < 2**63):
            raise fail(f"key of {name}", "an integer from 0 on, or text", repr(item[2])[:80])
        return image, label, key


class Datasets(DatasetSpec):
    """Your own torch datasets, such as torchvision's, with a length and items (image, label) by index, or streams.

    An image is a float tensor (C, H, W) in [0, 1], a uint8 tensor (C, H, W) or a PIL image; all have one shape. A label
    is an int, an integer of NumPy or a tensor without dimensions. The first item of each dataset is read at once,
    others when they are needed. A dataset that has masks of the objects has a method `mask(index)` that returns (H, W)
    in [0, 1]; torch's `Subset` and `ConcatDataset` hide it.

    A stream is an `IterableDataset` of (image, label) or (image, label, key), for `RobustDataModule` and
    `robustsigma.evaluate`. It is iterated anew in each epoch, after its `set_epoch(epoch)` if it has one, and divides
    its items among workers itself; workers that read the same images are refused or warned of. In a training it also
    divides them among processes, whereas the ranks of `evaluate` and `benchmark` need the whole stream in each of them.
    An image's random numbers follow from its key, an integer from 0 on or text; without one, from its pixels. A
    `SampleCache` needs integers.

    `evaluate` and `benchmark` resume in a run directory of datasets with the same content, and refuse one of others.
    `robustsigma.runs.fingerprint.items` says what is compared: all images of up to 256; of a larger one 256 of them and
    what it holds in memory.

    Args:
        train: training images, or None.
        val: validation images, or None to train without validation.
        test: test images, or None.
        classes: names of the classes, each once. A label is an index into them.

    Raises:
        ValueError: no dataset, one that cannot be indexed or is empty, repeated names of classes, or a first item of
            another kind.

    Example:
        >>> Datasets(test=CIFAR10("data", train=False), classes=names).shape
        (3, 32, 32)
    """

    # Not Dataset[Any]: jsonargparse would let YAML give a class of that no arguments.
    def __init__(
        self,
        train: Dataset | None = None,
        val: Dataset | None = None,
        test: Dataset | None = None,
        *,
        classes: Sequence[str],
    ) -> None:
        self._classes = class_names("classes", classes)
        if len(set(self._classes)) < len(self._classes):
            raise fail("classes", "names of classes, each once", repr(self._classes)[:80])
        given = {name: each for name, each in zip(get_args(Split), (train, val, test), strict=True) if each is not None}
        if not given:
            raise fail("train, val and test", "a dataset for one of them at least", "None for all")
        shape: tuple[int, ...] = ()
        self._parts: dict[str, Dataset[Any]] = {}
        for name, dataset in given.items():
            if isinstance(dataset, IterableDataset):
                self._parts[name] = stream = CheckedStream(dataset, name, len(self._classes), shape)
                shape = stream.shape
                continue
            _check_indexed(name, dataset)
            items = CheckedDataset(dataset, name, len(self._classes), shape)
            shape = items.shape
            if isinstance(dataset, ArrayDataset):  # it gives whole batches at once, and has its masks in an array
                target_range(extent(dataset.labels), len(self._classes), f"labels of {name}")
            self._parts[name] = dataset if isinstance(dataset, ArrayDataset) else items
        channels, height, width = shape
        self._shape = channels, height, width

    def __repr__(self) -> str:
        parts = self._parts.items()
        counts = ", ".join(f"{n}={'stream' if isinstance(p, IterableDataset) else len(p)}" for n, p in parts)  # type: ignore[arg-type]
        return f"Datasets({counts}, classes={list(self._classes)})"

    @property
    def classes(self) -> tuple[str, ...]:
        """The given names."""
        return self._classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the first image."""
        return self._shape

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that were given."""
        return tuple(split for split in super().splits if split in self._parts)

    def split(self, split: Split) -> Dataset[Any]:
        """Return a dataset whose images are float in [0, 1].

        Raises:
            ValueError: none was given for this split.
        """
        self.check_split(split)
        if split not in self._parts:
            raise fail(split, "a dataset, since its images are asked for", "None")
        return self._parts[split]


def _check_indexed(name: str, dataset: Any) -> None:
    # Dataset itself has a __getitem__, which raises.
    indexed = getattr(type(dataset), "__getitem__", None) not in (None, Dataset.__getitem__)
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError):  # no length, or one that says so
        indexed = False
    if not indexed or isinstance(dataset, Mapping):
        raise fail(
            name, "a dataset with a length and items by index, an IterableDataset, or None", type(dataset).__name__
        )
    if not count:
        raise fail(name, "a dataset with at least one image, or None", "none")
