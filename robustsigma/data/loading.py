"""Loaders whose order and randomness depend on a seed, the epoch and each image's index, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from robustsigma.data.dataset_spec import ArrayDataset, Batch
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
        self.left_out = 0  # of the next iteration's keys, the first ones

    def __iter__(self) -> Iterator[Key]:
        """Yield this process's keys."""
        left_out, self.left_out = self.left_out, 0
        return islice(self._keys(), left_out, None)

    def _keys(self) -> Iterator[Key]:
        if self.shuffle:
            whole = len(self.indices)
            places = range(self.rank, self.total_size, self.num_replicas)
            drawn = zip(places, super().__iter__(), strict=True)
            return (Key(self.epoch, self.indices[i], place >= whole) for place, i in drawn)
        return (Key(0, index) for index in self.indices[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return super().__len__() if self.shuffle else len(range(self.rank, len(self.indices), self.num_replicas))


def load_batch(dataset: Dataset[Any], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return images (n, C, H, W) and labels (n,) of a dataset whose items are (image, int label)."""
    if isinstance(dataset, ArrayDataset):
        return dataset.batch(indices)
    items = [dataset[index] for index in indices]
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def load_masks(dataset: Dataset[Any], indices: Sequence[int]) -> Tensor | None:
    """Return the masks of some images: float (n, H, W) in [0, 1], 1 on the object that decides the label.

    Args:
        dataset: an `ArrayDataset`, or any dataset; it has masks if it has a method `mask(index)` that returns one.
        indices: indices of at least one image.

    Returns:
        The masks, all zero for an unannotated image, or None for a dataset without masks.
    """
    if isinstance(dataset, ArrayDataset):
        return None if dataset.masks is None else dataset.masks[torch.as_tensor(indices, dtype=torch.int64)].float()
    mask = getattr(dataset, "mask", None)
    return None if mask is None else torch.stack([mask(index) for index in indices])


class KeyedDataset(Dataset[Batch]):
    """A dataset that is asked for whole batches of keys, or of indices by the sampler of another.

    `overfit_batches` of a Lightning Trainer puts such a one in the place of ours.

    Args:
        dataset: items are (float image (C, H, W) in [0, 1], int label).
        augment: applied to each image, or None.
        seed: with the epoch and the index, of the augmentation.
    """

    def __init__(self, dataset: Dataset[Any], augment: Albumentations | None, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, asked: Sequence[Key | int]) -> Batch:
        """Return a batch."""
        keys = [key if isinstance(key, Key) else Key(0, key) for key in asked]
        indices = [key.image for key in keys]
        images, labels = load_batch(self.dataset, indices)
        at = torch.tensor(indices)
        if self.augment is not None:
            seeds = noise.image_seeds(self.seed, "train", "augment", keys[0].epoch, at).tolist()
            images = torch.stack([self.augment.apply(x, seed) for x, seed in zip(images, seeds, strict=True)])
        repeated = torch.tensor([key.repeated for key in keys])
        return Batch(images, labels, at, repeated=repeated if repeated.any() else None)


def _same(batch: Batch) -> Batch:
    return batch


class ResumableLoader(DataLoader[Batch]):
    """A loader whose workers begin when the first batch is asked for, and which goes on in the middle of an epoch.

    Lightning calls `iter` on the loader of a resumed training before it tells the sampler the epoch: workers that had
    begun by then would load the images of epoch 0.
    """

    before: Callable[[], None] | None = None  # called when an epoch begins
    _served = 0  # batches of the epoch
    _resumed: tuple[int, int] | None = None  # the epoch and the batches of it that were served before
    _others: dict[str, Any] | None = None  # what was different then

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch that were not served."""
        if self.before is not None:
            self.before()
        resumed, self._resumed = self._resumed, None
        self._served = 0
        if resumed is not None and isinstance(self.sampler, KeySampler) and resumed[0] == self.sampler.epoch:
            if self._others:
                told = "that of an epoch's end, or these of the one given: " + str(self._others)
                raise fail("ckpt_path", told, {name: self._order()[name] for name in self._others})
            self._served = resumed[1] if resumed[1] < len(self) else 0  # a whole epoch is begun again by Lightning
            self.sampler.left_out = self._served * (self.batch_size or 1)
        for batch in super().__iter__():
            self._served += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return how far the epoch is; Lightning keeps it in checkpoints."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "served": self._served, "order": self._order()}

    def _order(self) -> dict[str, Any]:
        """Return what decides which images the next batch has."""
        if not isinstance(self.sampler, KeySampler):
            return {}
        sampler = self.sampler
        processes, images = sampler.num_replicas, len(sampler.indices)
        return {"batch_size": self.batch_size, "images": images, "processes": processes, "seed": sampler.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back: the next iteration leaves out what was served, if it is one of the same epoch.

        It raises ValueError where other batches were served then.
        """
        self._resumed = state_dict["epoch"], state_dict["served"]
        now = self._order()
        self._others = {name: value for name, value in state_dict.get("order", {}).items() if value != now.get(name)}


def loader(
    dataset: KeyedDataset,
    sampler: KeySampler,
    batch_size: int,
    workers: int,
    *,
    pinned: bool = False,
    drop_last: bool = False,
) -> ResumableLoader:
    """Return a loader that leaves the global generator alone; `pinned` is of batches that go to a CUDA device.

    Raises:
        ValueError: not a single batch, with `drop_last`.
    """
    if drop_last and len(sampler) < batch_size:
        raise fail("batch_size", f"at most {len(sampler)}, the images of an epoch, with drop_last", batch_size)
    return ResumableLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=_same,  # type: ignore[arg-type]
        pin_memory=pinned,
        # Without one of its own, each epoch would draw a base seed from the global generator.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )


def subsample(count: int, most: int | None, seed: int) -> list[int]:
    """Return all of `count` indices, or `most` of them at random, in order."""
    if most is None or most >= count:
        return list(range(count))
    order: Tensor = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:most].tolist())
