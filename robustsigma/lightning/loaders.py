"""Data loaders whose order and randomness depend only on a seed, the epoch and each image's index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from robustsigma.data.loading import load_batch
from robustsigma.data.transforms import Albumentations
from robustsigma.engine import noise
from robustsigma.engine.validation import fail
from robustsigma.lightning.batch import Batch


class Key(NamedTuple):
    """What a sampler asks a worker for.

    Attributes:
        epoch: epoch of the training; 0 elsewhere.
        image: index of the image.
        is_padding: whether the image only pads a process's part of the epoch, as another process has it too.
    """

    epoch: int
    image: int
    is_padding: bool = False


class KeySampler(DistributedSampler[Any]):
    """Yields the `Key`s of one process.

    It is a DistributedSampler so that Lightning keeps it and tells it the epoch. In training, processes wait for each
    other after each batch, so all have equally many keys: where the images cannot be divided evenly, the last key of
    some processes is padding. In evaluation there is no padding.

    Args:
        indices: indices of the images.
        shuffle: whether to draw the order from the seed and the epoch; otherwise the order is the given one and the
            epoch always 0.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        ValueError: in an evaluation of fewer images than processes, which would wait for each other forever.
    """

    def __init__(self, indices: Sequence[int], *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not shuffle and 0 < len(indices) < world_size:
            raise fail("images", f"one or more for each of {world_size} processes", len(indices))
        images: Any = range(len(indices))  # DistributedSampler uses only its length
        super().__init__(images, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self.indices = indices
        self.skip = 0  # number of keys that the next iteration leaves out at its start

    def __iter__(self) -> Iterator[Key]:
        """Yield this process's keys."""
        skip, self.skip = self.skip, 0
        return islice(self._keys(), skip, None)

    def _keys(self) -> Iterator[Key]:
        if not self.shuffle:
            return (Key(0, index) for index in self.indices[self.rank :: self.num_replicas])
        places = range(self.rank, self.total_size, self.num_replicas)
        drawn = zip(places, super().__iter__(), strict=True)
        return (Key(self.epoch, self.indices[i], place >= len(self.indices)) for place, i in drawn)

    def __len__(self) -> int:
        return super().__len__() if self.shuffle else len(range(self.rank, len(self.indices), self.num_replicas))


class KeyedDataset(Dataset[Batch]):
    """A dataset that returns whole batches, for keys or plain indices.

    Plain indices come from the sampler that Lightning uses for `overfit_batches`.

    Args:
        dataset: dataset of (float image (C, H, W) in [0, 1], int label).
        augment: transform of each image, or None.
        seed: seed of the augmentation, together with the epoch and the index.
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
        return Batch(images, labels, at, padding=sum(key.is_padding for key in keys))


def _unchanged(batch: Batch) -> Batch:
    return batch


class ResumableLoader(DataLoader[Batch]):
    """A loader that can resume in the middle of an epoch, and that leaves the global generator alone.

    Its workers start when the first batch is requested. Lightning calls `iter` on the loader of a resumed training
    before it tells the sampler the epoch: workers that had started by then would load the images of epoch 0.

    Args:
        dataset: dataset that returns whole batches.
        options: as of DataLoader.
    """

    on_start: Callable[[], None] | None = None  # called when an epoch starts
    _served = 0  # batches of this epoch
    _resumed: dict[str, Any] | None = None  # what `load_state_dict` was given

    def __init__(self, dataset: Dataset[Batch], **options: Any) -> None:
        # Without its own generator, a loader draws a base seed from the global one in each epoch.
        own = {"generator": torch.Generator(), "persistent_workers": options.get("num_workers", 0) > 0}
        super().__init__(dataset, **{"collate_fn": _unchanged, **own, **options})

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch, without those that were served before an interrupt.

        Raises:
            ValueError: in the middle of an epoch that was started with other batches.
        """
        if self.on_start is not None:
            self.on_start()
        resumed, self._resumed, self._served = self._resumed, None, 0
        if resumed is not None and isinstance(self.sampler, KeySampler) and resumed["epoch"] == self.sampler.epoch:
            before, now = resumed["order"], self._order()
            changed = {name: value for name, value in before.items() if value != now.get(name)}
            if changed:
                expected = f"one from the end of an epoch, or the settings of the checkpoint: {changed}"
                raise fail("ckpt_path", expected, {name: now[name] for name in changed})
            served = resumed["served"]
            self._served = served if served < len(self) else 0  # Lightning starts a finished epoch again
            self.sampler.skip = self._served * (self.batch_size or 1)
        for batch in super().__iter__():
            self._served += 1
            yield batch

    def _order(self) -> dict[str, Any]:
        """Return what decides which images the next batch has."""
        if not isinstance(self.sampler, KeySampler):
            return {}
        sampler = self.sampler
        processes, images = sampler.num_replicas, len(sampler.indices)
        return {"batch_size": self.batch_size, "images": images, "processes": processes, "seed": sampler.seed}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch; Lightning keeps it in checkpoints."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "served": self._served, "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state: the next iteration, if it is of the same epoch, leaves out what was served."""
        self._resumed = dict(state_dict)
