"""A dataset whose test images are replaced by held-out validation or training images.

The underscore in the module's name keeps the class out of the command line's list of datasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import Dataset, Subset

from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, Split
from robustsigma.data.loading import subsample
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.engine import validation


@dataclass(frozen=True)
class HeldOut(DatasetSpec):
    """A dataset whose validation or test images are held-out images of another one.

    Args:
        dataset: the other dataset.
        part: where the images come from; those of "train" are left out of the training images.
        images: maximum number, drawn at random; of the training images no more than a fifth.
    """

    dataset: DatasetSpec
    part: Literal["val", "train"] = "val"
    images: int = 400

    def __post_init__(self) -> None:
        validation.integer("images", self.images, 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.dataset.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.dataset.shape

    @property
    def geometry(self) -> ResizeCrop | None:  # type: ignore[override]  # an attribute in the base class
        """How images are resized and cropped."""
        return self.dataset.geometry

    def split(self, split: Split) -> Dataset[Any]:
        """Return the remaining training images, or for both other splits the held-out ones."""
        self.check_split(split)
        if split == "train" and self.part == "val":
            return self.dataset.split("train")
        dataset = self.dataset.split(self.part)
        held = self.indices(len(dataset))  # type: ignore[arg-type]
        if split == "train":
            held = sorted(set(range(len(dataset))) - set(held))  # type: ignore[arg-type]
        if not isinstance(dataset, ArrayDataset):
            return Subset(dataset, held)
        at = torch.tensor(held)
        masks = None if dataset.masks is None else dataset.masks[at]
        return ArrayDataset(dataset.images[at], dataset.labels[at], masks)

    def indices(self, count: int) -> list[int]:
        """Return the places of the held-out images among `count` images of their split.

        Raises:
            ValueError: there are too few.
        """
        most = min(self.images, count if self.part == "val" else count // 5)
        if most < 1:
            raise validation.fail("dataset", f"images in {self.part!r} to hold out, 5 or more of training", count)
        return subsample(count, most, 0)


def held_out(dataset: DatasetSpec, images: int) -> HeldOut:
    """Return a dataset that is tested on its validation images, or on training images if it has no others."""
    return HeldOut(dataset, "val" if len(dataset.split("val")) else "train", images)  # type: ignore[arg-type]
