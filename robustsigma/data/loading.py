"""Loading of images, labels and masks by their indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.dataset_spec import ArrayDataset


def load_batch(dataset: Dataset[Any], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) and labels (n,) of a dataset whose items are (image, int label)."""
    if isinstance(dataset, ArrayDataset):
        return dataset.batch(indices)
    batched = getattr(dataset, "__getitems__", None)  # torch's own name for it
    items = [dataset[index] for index in indices] if batched is None else batched(list(indices))
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def load_masks(dataset: Dataset[Any], indices: Sequence[int]) -> Tensor | None:
    """Return the masks of some images, float (n, H, W) in [0, 1], or None for a dataset without masks.

    A dataset has masks if it has a method `mask(index)` or is an `ArrayDataset` with some. 1 is on the object that
    decides the label; the mask of an unannotated image is all zero.
    """
    if isinstance(dataset, ArrayDataset):
        return None if dataset.masks is None else dataset.masks[torch.as_tensor(indices, dtype=torch.int64)].float()
    mask = getattr(dataset, "mask", None)
    return None if mask is None else torch.stack([mask(index) for index in indices])


def subsample(count: int, most: int | None, seed: int) -> list[int]:
    """Return all of `count` indices, or `most` of them at random, in order."""
    if most is None or most >= count:
        return list(range(count))
    order: Tensor = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:most].tolist())
