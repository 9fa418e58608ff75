"""A dataset whose own test images nobody sees: others take their place.

A command line does not offer it among the datasets: the module's name has an underscore before it.
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
    """Another dataset, in which images of validation, or of training, stand for those of test.

    Args:
        source: the dataset.
        part: where the images come from; those of "train" are left out of the training images.
        images: at most, drawn at random; of the training images no more than a fifth.
    """

    source: DatasetSpec
    part: Literal["val", "train"] = "val"
    images: int = 400

    def __post_init__(self) -> None:
        validation.choice("part", self.part, ("val", "train"))
        validation.integer("images", self.images, 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the dataset."""
        return self.source.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the dataset."""
        return self.source.shape

    @property
    def geometry(self) -> ResizeCrop | None:  # type: ignore[override]  # it stands in the base class as an attribute
        """That of the dataset."""
        return self.source.geometry

    def split(self, split: Split) -> Dataset[Any]:
        """Return the images left for training, or for both other splits the held-out ones."""
        self.check_split(split)
        if split == "train" and self.part == "val":
            return self.source.split("train")
        dataset = self.source.split(self.part)
        held = self.indices(len(dataset))  # type: ignore[arg-type]
        if split == "train":
            taken = set(held)
            held = [index for index in range(len(dataset)) if index not in taken]  # type: ignore[arg-type]
        return _part(dataset, held)

    def indices(self, count: int) -> list[int]:
        """Return which images are held out, by their place in the split that they come from.

        Args:
            count: images of that split.

        Raises:
            ValueError: there are too few.
        """
        most = min(self.images, count if self.part == "val" else count // 5)
        if most < 1:
            raise validation.fail("source", f"images in {self.part!r} to hold out, 5 or more of training", count)
        return subsample(count, most, 0)


def held_out(source: DatasetSpec, images: int) -> HeldOut:
    """Return a dataset judged on its validation images, or on training images if it has none of validation."""
    return HeldOut(source, "val" if len(source.split("val")) else "train", images)  # type: ignore[arg-type]


def _part(dataset: Dataset[Any], indices: list[int]) -> Dataset[Any]:
    if not isinstance(dataset, ArrayDataset):
        return Subset(dataset, indices)
    at = torch.tensor(indices)
    return ArrayDataset(dataset.images[at], dataset.labels[at], None if dataset.masks is None else dataset.masks[at])
