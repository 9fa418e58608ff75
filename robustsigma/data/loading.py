"""Loaders whose order and randomness depend on a seed, the epoch and each image's index, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from robustsigma.data.source import ArrayDataset, Batch
from robustsigma.data.transforms import Albumentations
from robustsigma.engine import noise
from robustsigma.engine.validation import fail


class Key(NamedTuple):
    """Which image, in which epoch: what the sampler asks a worker for.

    Attributes:
        epoch: of the training; 0 elsewhere.
        image: its index.
        repeated: whether it only fills up a process's share, as another has it too.
    """

    epoch: int
    image: int
    repeated: bool = False


class KeySampler(DistributedSampler[Any]):
    """Yields `Key`s, each process its own share.

    It is a DistributedSampler so that Lightning leaves it in place and tells it the epoch. Shares of training are as
    long as each other, as processes wait for each other after each batch: a short one is filled up with images that
    say so and do not count. Those of evaluation are not.

    Args:
        indices: of the images to go through.
        shuffle: in an order drawn from the seed and the epoch; else in the given order and always in epoch 0.
        seed: of the order.
        rank: of this process.
        world: number of processes.

    Raises:
        ValueError: evaluation of fewer images than processes, which would wait for each other forever.
    """

    def __init__(self, indices: Sequence[int], *, shuffle: bool, seed: int, rank: int, world: int) -> None:
        if not shuffle and 0 < len(indices) < world:
            raise fail("images", f"one or more for each of {world} processes", len(indices))
        images: Any = range(len(indices))  # only its length is asked for
        super().__init__(images, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.indices = indices

    def __iter__(self) -> Iterator[Key]:
        """Yield this process's keys."""
        if self.shuffle:
            whole = len(self.indices)
            places = range(self.rank, self.total_size, self.num_replicas)
            drawn = zip(places, super().__iter__(), strict=True)
            return (Key(self.epoch, self.indices[i], place >= whole) for place, i in drawn)
        return (Key(0, index) for index in self.indices[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return super().__len__() if self.shuffle else len(range(self.rank, len(self.indices), self.num_replicas))


def take(dataset: Dataset[Any], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) and labels (n,) of a dataset whose items are (image, int label)."""
    if isinstance(dataset, ArrayDataset):
        return dataset.batch(indices)
    items = [dataset[index] for index in indices]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def take_masks(dataset: Dataset[Any], indices: Sequence[int]) -> Tensor | None:
    """Return the masks of some images: float (n, H, W) in [0, 1], 1 on the object that decides the label.

    Args:
        dataset: an `ArrayDataset`, or any other; it has masks if it has a method `mask(index)` that returns one.
        indices: which images, at least one.

    Returns:
        The masks, all zero for an image that nobody marked, or None for a dataset without masks.
    """
    if isinstance(dataset, ArrayDataset):
        return None if dataset.masks is None else dataset.masks[torch.as_tensor(indices, dtype=torch.int64)].float()
    mask = getattr(dataset, "mask", None)
    return None if mask is None else torch.stack([mask(index) for index in indices])


class KeyedDataset(Dataset[Batch]):
    """A dataset that is asked for whole batches of keys.

    Args:
        dataset: items are (float image (C, H, W) in [0, 1], int label).
        augment: applied to each image, or None.
        seed: with the epoch and the index, of the augmentation.
    """

    def __init__(self, dataset: Dataset[Any], augment: Albumentations | None, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return a batch."""
        indices = [key.image for key in keys]
        images, labels = take(self.dataset, indices)
        at = torch.tensor(indices)
        if self.augment is not None:
            seeds = noise.image_seeds(self.seed, "train", "augment", keys[0].epoch, at).tolist()
            images = torch.stack([self.augment.apply(x, seed) for x, seed in zip(images, seeds, strict=True)])
        repeated = torch.tensor([key.repeated for key in keys])
        return Batch(images, labels, at, repeated=repeated if repeated.any() else None)


def _same(batch: Batch) -> Batch:
    return batch


class _Loader(DataLoader[Batch]):
    """A loader whose workers begin when the first batch is asked for.

    Lightning calls `iter` on the loader of a resumed training before it tells the sampler the epoch: workers that had
    begun by then would load the images of epoch 0.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch."""
        yield from super().__iter__()


def loader(
    dataset: KeyedDataset, sampler: KeySampler, batch_size: int, workers: int, *, pinned: bool = False
) -> DataLoader[Batch]:
    """Return a loader that leaves the global generator alone; `pinned` is of batches that go to a CUDA device."""
    return _Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_same,  # type: ignore[arg-type]
        pin_memory=pinned,
        # Without one of its own, each epoch would draw a base seed from the global generator.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )


def chosen(count: int, most: int | None, seed: int) -> list[int]:
    """Return all of `count` indices, or `most` of them at random, in order."""
    if most is None or most >= count:
        return list(range(count))
    order: Tensor = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:most].tolist())
