"""`DatasetSpec`, a frozen description of a dataset with three splits, and the arrays that splits give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.random_resized_crop import RandomResizedCrop
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine.network_state import as_pixels
from robustsigma.engine.validation import Settings, fail, near

Split = Literal["train", "val", "test"]


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images held in memory as uint8. Items are (float (C, H, W) in [0, 1], int label).

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        masks: bool (N, H, W), True on the object that decides the label, or None for unannotated images.

    Example:
        >>> dataset = ArrayDataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
        >>> dataset[1][1]
        1
    """

    def __init__(self, images: Tensor, labels: Tensor, masks: Tensor | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise fail("images", "uint8 (N, C, H, W)", f"{images.dtype} {tuple(images.shape)}")
        if len(images) != len(labels):
            raise fail("labels", f"{len(images)} of them, one per image", len(labels))
        shape = (len(images), *images.shape[2:])
        if masks is not None and (masks.dtype != torch.bool or masks.shape != shape):
            raise fail("masks", f"bool {shape}, one per image", f"{masks.dtype} {tuple(masks.shape)}")
        self.images, self.labels, self.masks = images, labels, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return as_pixels(self.images[index]), int(self.labels[index])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (n, C, H, W) and labels (n,) by one indexing operation instead of n."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        return as_pixels(self.images[at]), self.labels[at]


class PixelDataset(Dataset[tuple[Tensor, int]], ABC):
    """Base class of datasets that read an image as bytes where it has bytes. Items are floats in [0, 1].

    Loaders ask for `read`, so that a quarter of the memory goes from worker to device.

    Attributes:
        decodes: whether images are decoded from files, for which loading processes are worth their start.
    """

    decodes = True

    @abstractmethod
    def read(self, index: int, crop: RandomResizedCrop | None = None, seed: int = 0) -> tuple[Tensor, int]:
        """Return an image, uint8 or float (C, H, W), and its label; of the image a random crop if there is one."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.read(index)
        return as_pixels(image), label


class DatasetSpec(Settings, ABC):
    """Base class of datasets: a frozen dataclass of settings, so that a YAML file can describe it.

    `split` may be called repeatedly and in several processes. Equal specs give equal images.

    Attributes:
        geometry: how images are resized and cropped, or None if they are not, or if a trained network decides it.

    Example:
        >>> spec = Baggage(size=32)
        >>> spec.classes[0], spec.shape, len(spec.split("test"))
        ('gun', (3, 32, 32), 1000)
    """

    geometry: ResizeCrop | None = None

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names. A label is an index into them."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @abstractmethod
    def split(self, split: Split) -> Dataset[Any]:
        """Return the images of "train", "val" or "test". Items are (float (C, H, W) in [0, 1], int label).

        A dataset may have two methods that other code looks for. `mask(index)` returns float (H, W) in [0, 1], 1 on
        the object that decides the label; `robustsigma.data.loading.load_masks` reads it, or the `masks` of an
        `ArrayDataset`. `correct_labels(index)` returns every label that is correct for an image; the first is its
        label.
        """

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that have images."""
        return get_args(Split)

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the content of this dataset, in plain JSON types; a run directory is bound to it.

        By default it covers the items of every split, see `robustsigma.runs.fingerprint.items`. Override it if there is
        a cheaper way.
        """
        from robustsigma.data.loading import fingerprint  # here, as it imports this module

        return {"classes": list(self.classes), **{name: fingerprint(self.split(name)) for name in self.splits}}

    def adapt_to_model(self, classes: Sequence[str], geometry: ResizeCrop | None) -> DatasetSpec:
        """Return this dataset with what it leaves open taken from a trained network.

        Args:
            classes: names of the network's classes.
            geometry: how the network's images are resized and cropped, or None if that is unknown.
        """
        return self

    @staticmethod
    def check_split(split: str) -> None:
        """Raise ValueError unless `split` is one of the three."""
        if split not in get_args(Split):
            raise fail("split", f"one of {', '.join(get_args(Split))}", repr(split) + near(split, get_args(Split)))


def adapt_and_check(
    spec: DatasetSpec, classes: Sequence[str], shape: tuple[int, int, int], geometry: ResizeCrop | None, name: str
) -> DatasetSpec:
    """Return a dataset as a network of these classes, image shape (C, H, W) and geometry takes it.

    Names that are only "0", "1", ... match any others. ValueError, naming the argument `name`: a dataset of other
    images or classes.
    """
    found = spec.adapt_to_model(classes, geometry)
    theirs, ours = tuple(classes), found.classes
    if found.shape != shape or len(theirs) != len(ours):
        raise fail(name, f"a model of {found.shape} and {len(ours)} classes", f"{shape} and {len(theirs)} classes")
    counted = tuple(map(str, range(len(theirs))))
    if theirs != ours and counted not in (theirs, ours):
        first = next(place for place, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        raise fail(name, f"a model of the dataset's classes, {ours[first]!r} at place {first}", repr(theirs[first]))
    return found
