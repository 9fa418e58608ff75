"""Datasets whose batches and randomness depend only on a seed, the epoch and each image's key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from robustsigma.data.datasets import CheckedStream
from robustsigma.data.loading import Augmentation, augmented, load_pixels, stack
from robustsigma.engine import noise
from robustsigma.lightning.batch import Batch


class Key(NamedTuple):
    """What a sampler asks a worker for.

    Attributes:
        epoch: epoch of the training; 0 elsewhere.
        image: index of the image.
        is_padding: whether the image only pads a process's part of the epoch, as another process has it too.
        repeat: how often a sampler drew the image before in this epoch.
    """

    epoch: int
    image: int
    is_padding: bool = False
    repeat: int = 0


class KeyedDataset(Dataset[Batch]):
    """A dataset that returns whole batches, for keys or plain indices.

    Plain indices come from the sampler that Lightning uses for `overfit_batches`.

    Args:
        dataset: dataset of (float image (C, H, W) in [0, 1], int label).
        augment: transform of each image, or None.
        seed: seed of the augmentation, together with the epoch and the index.
    """

    def __init__(self, dataset: Dataset[Any], augment: Augmentation | None, seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, asked: Sequence[Key | int]) -> Batch:
        """Return a batch; images that are bytes, in a file or in memory, are so in it."""
        keys = [key if isinstance(key, Key) else Key(0, key) for key in asked]
        indices = [key.image for key in keys]
        at = torch.tensor(indices)
        repeats = torch.tensor([key.repeat for key in keys]) if any(key.repeat for key in keys) else None
        seeds = apart(noise.image_seeds(self.seed, "train", "augment", keys[0].epoch, at), repeats).tolist()
        images, labels = load_pixels(self.dataset, indices, self.augment, seeds)
        return Batch(images, labels, at, padding=sum(key.is_padding for key in keys), repeats=repeats)


def apart(seeds: Tensor, repeats: Tensor | None) -> Tensor:
    """Return seeds of images (B,) with new ones for those that a sampler drew before in the epoch."""
    return seeds if repeats is None else torch.where(repeats > 0, noise.fold(seeds, "repeat", repeats), seeds)


class KeyedStream(IterableDataset[Any]):
    """A stream whose items are (image, label, key), augmented as in an epoch.

    Args:
        stream: stream of a user.
        augment: transform of each image, or None.
        seed: seed of the augmentation, together with the epoch and the key.
    """

    def __init__(self, stream: CheckedStream, augment: Augmentation | None, seed: int) -> None:
        self.stream, self.augment, self.seed, self.epoch = stream, augment, seed, 0

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        for image, label, key in self.stream.read():
            if self.augment is not None:
                seed = noise.image_seeds(self.seed, "train", "augment", self.epoch, torch.tensor([key]))
                image = augmented(image, self.augment, int(seed))
            yield image, label, key

    def __len__(self) -> int:
        return len(self.stream)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, for the user's stream too if it shuffles by epochs."""
        self.epoch = epoch
        set_epoch = getattr(self.stream.inner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def collate_keyed(items: Sequence[tuple[Tensor, int, int]]) -> Batch:
    """Return items of a `KeyedStream` as a batch, whose indices are the keys."""
    images, labels = stack([item[:2] for item in items])
    return Batch(images, labels, torch.tensor([key for *_, key in items]))
