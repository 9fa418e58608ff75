"""The images and masks of a user as a dataset that a benchmark reads by index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from robustsigma.data.dataset_spec import DatasetSpec, Split
from robustsigma.data.image_files import looks_like_classes
from robustsigma.data.loading import load_masks
from robustsigma.engine.validation import extent, fail
from robustsigma.evaluation.given_images import GivenImages
from robustsigma.lightning.batch_images import BatchField
from robustsigma.runs.fingerprint import items

Masks = Any  # arrays, a dataset, a function of the index, or the place in an item


class GivenSplit(Dataset[tuple[Tensor, int]]):
    """Images in [0, 1] with their labels, and masks if there are any.

    Args:
        given: the images.
        masks: arrays (N, H, W), a dataset of masks, a function of the index, or the place of the mask in an item. None
            finds the masks of a dataset that has them: by a method `mask(index)`, or as the third part of an item.
        most: images of data that cannot be asked for an image by its index; they are kept in memory.

    Raises:
        ValueError: no image; masks that do not fit; masks or several correct labels of images in an unknown order.
    """

    def __init__(self, given: GivenImages, masks: Masks, most: int) -> None:
        self.given, self.inner = given, given.origin
        self._kept = None
        self._items, self._collate = given.source, given.collate
        if isinstance(given.source, DataLoader):  # of which only the dataset has items
            self._items, self._collate = given.source.dataset, given.source.collate_fn
        if given.count is None:
            given.most = most
            blocks = list(given.blocks())
            if not blocks:
                raise fail("data", "at least one image", "none")
            self._kept = torch.cat([each.images for each in blocks]), torch.cat([each.labels for each in blocks])
        if masks is not None:
            self.check_order()
        reader, correct_labels = self._reader(masks), _by_index(self.inner, "correct_labels")
        if reader is not None or correct_labels is not None:
            self.check_order()
        if reader is not None:
            self.mask = lambda index: _mask(reader(index), tuple(self[index][0].shape[1:]), index)
            self.mask(0)
        if correct_labels is not None:
            self.correct_labels = correct_labels

    def check_order(self) -> None:
        """Raise unless the place of each image here is its index in the data, by which masks and maps are found."""
        source = self.given.source
        dataset, sampler, batches = (getattr(source, name, None) for name in ("dataset", "sampler", "batch_sampler"))
        if self._kept is None or dataset is None or isinstance(dataset, IterableDataset):
            return
        if not isinstance(sampler, SequentialSampler) or type(batches) is not BatchSampler:
            expected = "images whose indices are known, to which masks, correct labels and stored maps belong"
            got = f"a {type(source).__name__} in an order of its own; pass its dataset or a torch.utils.data.Subset"
            raise fail("data", expected, got)

    def __len__(self) -> int:
        return len(self._kept[1]) if self._kept is not None else self.given.count or 0

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        if self._kept is not None:
            images, labels = (part[torch.tensor(indices)] for part in self._kept)
        else:
            images, labels = self.given.load(indices)
        return list(zip(images.cpu(), labels.tolist(), strict=True))

    def _reader(self, masks: Masks) -> Callable[[int], Any] | None:
        if masks is None:
            if load_masks(self.inner, [0]) is not None:
                return lambda index: load_masks(self.inner, [index])
            return self._in_item(2) if self._has_third_part() else None
        if isinstance(masks, (int, str)) and not isinstance(masks, bool):
            return self._in_item(masks)
        if hasattr(masks, "__getitem__") and hasattr(masks, "__len__"):
            if len(masks) != len(self) and not (self._kept and len(masks) > len(self)):
                raise fail("masks", f"{len(self)}, one for each image", len(masks))
            return masks.__getitem__
        if not callable(masks):
            expected = "arrays (N, H, W), a dataset of masks, a function of the index, or their place in an item"
            raise fail("masks", expected, repr(masks)[:80])
        return masks

    def _has_items(self) -> bool:
        """Return whether items can be asked for by their index: `Dataset` itself has a method that raises."""
        return getattr(type(self._items), "__getitem__", Dataset.__getitem__) is not Dataset.__getitem__

    def _has_third_part(self) -> bool:
        if not self._has_items():
            return False
        try:
            item = self._items[0]
        except Exception:
            if self._kept is None:
                raise
            return False  # a loader may ask for items by something else
        shaped = isinstance(item, (tuple, list)) and len(item) == 3
        return shaped and (isinstance(item[2], Image.Image) or getattr(item[2], "ndim", 0) in (2, 3))

    def _in_item(self, place: int | str) -> Callable[[int], Any]:
        if not self._has_items():
            raise fail("masks", "arrays or a function of the index, as these data have no items", repr(place))
        source, collate, field = self._items, self._collate, BatchField("masks", place)
        return lambda index: field.get(collate([source[index]]))


def _by_index(dataset: Any, name: str) -> Callable[[int], Any] | None:
    """Return a method of a dataset that takes an index, also of one below subsets, or None."""
    if not isinstance(dataset, Subset):
        return getattr(dataset, name, None)
    inner = _by_index(dataset.dataset, name)
    return None if inner is None else lambda index: inner(dataset.indices[index])


def _mask(value: Any, size: tuple[int, ...], index: int) -> Tensor:
    """Return a mask (H, W) in [0, 1].

    Of uint8, a mask has 0 and 1, 0 and 255, or soft edges; indices of classes are refused, as they are no shares.
    """
    found = torch.as_tensor(np.array(value) if isinstance(value, Image.Image) else value)
    shape = tuple(found.shape)
    while found.ndim > 2 and len(found) == 1:
        found = found[0]
    if tuple(found.shape) != size:
        raise fail(f"masks[{index}]", f"shape {size}, that of the image", shape)
    low, high = extent(found.float())
    scale = 255 if found.dtype == torch.uint8 and high > 1 else 1
    if not 0 <= low <= high <= scale:
        raise fail(f"masks[{index}]", "True and False, values in [0, 1], or uint8", f"[{low:g}, {high:g}]")
    if scale == 255 and looks_like_classes(found.numpy(), scale):
        values = ", ".join(map(str, found.unique()[:6].tolist()))
        got = f"{values}, …, which look like classes; pass mask == class, or mask / 255 if they are gray"
        raise fail(f"masks[{index}]", "uint8 of 0 and 1, of 0 and 255, or with soft edges", got)
    return found.float() / scale


class GivenDataset(DatasetSpec):
    """A user's images as a dataset of one split.

    Args:
        split: the images.
        classes: names of the classes.
    """

    classes: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)  # of the first image
    splits: tuple[Split, ...] = ("test",)

    def __init__(self, split: GivenSplit, classes: tuple[str, ...]) -> None:
        self.images, self.name, self.classes = split, split.given.name, classes
        channels, height, width = split[0][0].shape
        self.shape = channels, height, width

    def __repr__(self) -> str:
        return "GivenDataset()"  # equal images in another container are the same data

    def split(self, split: Split) -> GivenSplit:
        """Return the images."""
        return self.images

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the images and masks, see `robustsigma.runs.fingerprint.items`."""
        return items(self.images)
