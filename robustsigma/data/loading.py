"""Loading of images, labels and masks by their indices."""

from __future__ import annotations

import multiprocessing
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from robustsigma.data.dataset_spec import ArrayDataset, PixelDataset
from robustsigma.data.image_files import FileDataset
from robustsigma.data.random_resized_crop import RandomResizedCrop
from robustsigma.data.transforms import Albumentations
from robustsigma.engine.network_state import as_pixels
from robustsigma.engine.validation import fail, warn
from robustsigma.runs.fingerprint import describe, items

Augmentation = Albumentations | RandomResizedCrop
_MANY = 512  # images that are worth the start of loading processes
_MOST_WORKERS = 8
_UNDIVIDED = "0 or 1, or a stream that divides its items among loading processes"


def check_augmentation(augment: Any) -> None:
    """Raise ValueError unless this is an augmentation or None."""
    if not isinstance(augment, Augmentation | None):
        raise fail("augment", "an Albumentations, a RandomResizedCrop or None", repr(augment)[:80])


def load_batch(dataset: Dataset[Any], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W), float in [0, 1], and labels (n,) of a dataset whose items are (image, int label)."""
    images, labels = load_pixels(dataset, indices)
    return as_pixels(images), labels


def load_pixels(
    dataset: Dataset[Any],
    indices: Sequence[int],
    augment: Augmentation | None = None,
    seeds: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) and labels (n,), as `load_batch`, but images as uint8 if the dataset has bytes.

    Args:
        dataset: dataset of (image, int label) by index.
        indices: indices of the images.
        augment: transform of each image, or None.
        seeds: seed of each image, for it.
    """
    seeds = [0] * len(indices) if seeds is None else seeds
    if isinstance(dataset, Subset):
        return load_pixels(dataset.dataset, [dataset.indices[index] for index in indices], augment, seeds)
    if isinstance(dataset, ConcatDataset):
        found = []
        for index, seed in zip(indices, seeds, strict=True):
            place = bisect_right(dataset.cumulative_sizes, index)
            inner = dataset.datasets[place]
            start = dataset.cumulative_sizes[place] - len(inner)  # type: ignore[arg-type]
            (image,), (label,) = load_pixels(inner, [index - start], augment, [seed])
            found.append((image, int(label)))
        return stack(found)
    crop = augment if isinstance(augment, RandomResizedCrop) and isinstance(dataset, PixelDataset) else None
    batched = getattr(dataset, "__getitems__", None)  # torch's own name for it
    if isinstance(dataset, ArrayDataset):
        at = torch.as_tensor(indices, dtype=torch.int64)
        images, labels = dataset.images[at], dataset.labels[at]
    elif isinstance(dataset, PixelDataset):
        images, labels = stack([dataset.read(index, crop, seed) for index, seed in zip(indices, seeds, strict=True)])
    else:
        images, labels = stack([dataset[index] for index in indices] if batched is None else batched(list(indices)))
    rest = augment if crop is None else crop.then
    if rest is not None:
        images = torch.stack([augmented(image, rest, seed) for image, seed in zip(images, seeds, strict=True)])
    return images, labels


def augmented(image: Tensor, augment: Augmentation, seed: int) -> Tensor:
    """Return an image (C, H, W), uint8 or float in [0, 1], transformed; equal seeds give equal images."""
    if isinstance(augment, RandomResizedCrop):
        crop = augment.of_tensor(image, seed)
        return crop if augment.then is None else augmented(crop, augment.then, seed)
    return augment.apply(as_pixels(image), seed)


def stack(items: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) and labels (n,) of items; images of bytes and of floats together become floats."""
    images, labels = zip(*items, strict=True)
    if len({image.dtype for image in images}) > 1:
        images = tuple(map(as_pixels, images))
    return torch.stack(images), torch.tensor(labels)


def divided(
    batches: DataLoader[Any], keys_of: Callable[[Any], Tensor], start: Iterable[Any] | None = None
) -> Iterator[Any]:
    """Yield the batches of a loader, and raise if two of its processes begin with the same batch of a stream.

    Where they begin with different ones, of which most images come again later, each shuffles the whole stream. That is
    an error in an evaluation, and a warning in a training, whose stream may repeat images on purpose.

    Args:
        batches: the loader.
        keys_of: returns what tells the images of a batch apart, int64 (B,).
        start: an iterator over the loader that a training has made; None evaluates.
    """
    workers = batches.num_workers if isinstance(batches.dataset, IterableDataset) else 0
    first: list[Tensor] = []
    shown, warned = 0, False
    for batch in batches if start is None else start:
        if workers > 1 and not warned:
            keys = keys_of(batch)
            got = f"from two of {workers} loading processes; see torch.utils.data.get_worker_info"
            if len(first) < workers:
                if any(torch.equal(keys, other) for other in first):
                    raise fail("num_workers", _UNDIVIDED, f"the same batch {got}")
                first.append(keys)
            began = torch.cat(first)
            shown += int(torch.isin(keys, began).sum())
            if len(first) == workers and 2 * shown > 3 * len(began.unique()):
                error = fail("num_workers", _UNDIVIDED, f"most images twice, perhaps {got}")
                if start is None:
                    raise error
                warn(str(error))
                warned = True
        yield batch


def load_masks(dataset: Dataset[Any], indices: Sequence[int]) -> Tensor | None:
    """Return the masks of some images, float (n, H, W) in [0, 1], or None for a dataset without masks.

    A dataset has masks if it has a method `mask(index)` or is an `ArrayDataset` with some. 1 is on the object that
    decides the label; the mask of an unannotated image is all zero.
    """
    if isinstance(dataset, Subset):
        return load_masks(dataset.dataset, [dataset.indices[index] for index in indices])
    if isinstance(dataset, ArrayDataset):
        return None if dataset.masks is None else dataset.masks[torch.as_tensor(indices, dtype=torch.int64)].float()
    mask = getattr(dataset, "mask", None)
    return None if mask is None else torch.stack([mask(index) for index in indices])


def label_of(dataset: Dataset[Any], index: int) -> int:
    """Return the label of an image, which is not read where the dataset knows its labels."""
    if isinstance(dataset, Subset):
        return label_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, FileDataset):
        return int(dataset.rows.labels[index])
    return int(dataset.labels[index] if isinstance(dataset, ArrayDataset) else dataset[index][1])


def fingerprint(dataset: Dataset[Any]) -> dict[str, Any]:
    """Return what identifies a dataset's content; of image files none is decoded."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, FileDataset):
        return {**dataset.dataset.fingerprint(), "indices": describe(torch.as_tensor(dataset.indices))}
    return dataset.fingerprint() if isinstance(dataset, FileDataset) else items(dataset)


def subsample(count: int, most: int | None, seed: int) -> list[int]:
    """Return all of `count` indices, or `most` of them at random, in order."""
    if most is None or most >= count:
        return list(range(count))
    order: Tensor = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:most].tolist())


def default_workers(dataset: Any, world_size: int = 1) -> int:
    """Return the number of loading processes where none is given: 0 unless images are many and have to be decoded.

    Else it is the number of cores of this process, divided among the processes of a launcher, up to 8. It is 0 where
    processes do not start as forks (macOS, Windows, Python 3.14), as a script needs a main guard there.
    """
    while not isinstance(dataset, PixelDataset) and isinstance(getattr(dataset, "dataset", None), Dataset):
        dataset = dataset.dataset
    decodes = isinstance(dataset, PixelDataset) and dataset.decodes and len(dataset) >= _MANY  # type: ignore[arg-type]
    # Asked in this way, it stays open to `set_start_method`.
    start = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if not decodes or start != "fork":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = os.environ.get("LOCAL_WORLD_SIZE", min(world_size, torch.cuda.device_count() or world_size))
    return min(_MOST_WORKERS, cores // max(1, int(local)))
