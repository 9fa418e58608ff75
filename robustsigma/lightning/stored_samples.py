"""Storage of one sample cache: the last SIGMA sample of each image, with the epoch in which it was made."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from mmap import mmap
from tempfile import TemporaryFile, gettempdir

import torch
from torch import Tensor

from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.engine.validation import fail

_NONE = -1
_COLUMNS = ("owners", "epochs", "fooled", "images")
_MANY = 1024  # samples that are read at once
_RESERVES = hasattr(os, "posix_fallocate")  # not on macOS and Windows
_TYPES = {"uint8": torch.uint8, "float16": torch.float16}


class StoredSamples:
    """The last sample of each image, with the epoch in which it was made.

    The samples are in a temporary file without a name, mapped into host memory: C·H·W bytes an image in uint8 (3 kB at
    3x32x32, 12 kB at 3x64x64, 147 kB at 3x224x224; 193 GB for ImageNet, divided among the processes), twice that in
    float16. Without a limit the file grows with the number of images, in steps of twice its size. It is where Python's
    `tempfile` puts files, which the environment variable TMPDIR moves. 25 bytes an image more are in memory.

    Args:
        rule: how long and in which type samples are kept.
        made_by: settings of the `SigmaSample` that makes the samples.
    """

    def __init__(self, rule: SampleCache, made_by: str = "") -> None:
        self.rule, self.made_by = rule, made_by
        self.slots = torch.full((0,), _NONE)  # by index in the dataset; the tensors below are by slot
        self.owners = torch.zeros(0, dtype=torch.int64)
        self.epochs = torch.zeros(0, dtype=torch.int64)
        self.fooled = torch.zeros(0, dtype=torch.bool)
        self.images = torch.zeros(0, dtype=_TYPES[rule.dtype])
        self.count = 0
        self._file: int | None = None

    def __len__(self) -> int:
        return self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples; the images are not copied."""
        # From NumPy, since torch.save writes all of the storage that a slice is of.
        return {name: torch.from_numpy(getattr(self, name).numpy()[: self.count]) for name in _COLUMNS}

    def load_state_dict(self, state: dict[str, Tensor], owned: Callable[[Tensor], Tensor] | None = None) -> None:
        """Add samples that were stored, of the images that this process owns, unless they are of another type."""
        if state["images"].dtype != _TYPES[self.rule.dtype]:
            return
        owners = state["owners"]
        at = torch.arange(len(owners)) if owned is None else owned(owners).nonzero()[:, 0]
        for rows in at.split(_MANY):
            images, fooled, epochs = (state[name][rows] for name in ("images", "fooled", "epochs"))
            self.store(owners[rows], self.unpacked(images), fooled, epochs)

    def recall(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the stored samples of some of n images, of which k have one.

        Args:
            indices: int64 (n,).
            epoch: current epoch.

        Returns:
            (n,) bool, which images have a sample; (k,) int64, the ages of the samples in epochs; (k,) bool, True where
            the network misclassified the sample when it was made; the samples, float (k, C, H, W).
        """
        device, indices = indices.device, indices.cpu()
        known = indices < len(self.slots)
        slots = torch.full_like(indices, _NONE)
        slots[known] = self.slots[indices[known]]
        has = slots != _NONE
        at = slots[has]
        found = (each.to(device) for each in (has, epoch - self.epochs[at], self.fooled[at], self.images[at]))
        has, ages, fooled, images = found
        return has, ages, fooled, self.unpacked(images)

    def store(self, indices: Tensor, images: Tensor, fooled: Tensor, epoch: int | Tensor) -> None:
        """Store the samples of n different images; where there is a limit, they replace the oldest of other images.

        Args:
            indices: int64 (n,).
            images: float (n, C, H, W) in [0, 1].
            fooled: bool (n,), which samples the network misclassifies now.
            epoch: epoch that they were made in, one or int64 (n,).
        """
        if len(indices) == 0:
            return
        kept = slice(self.rule.most)
        epochs = torch.as_tensor(epoch).expand(len(indices))[kept]
        indices, images, fooled = indices[kept].cpu(), self.packed(images[kept]).cpu(), fooled[kept].cpu()
        if int(indices.max()) >= len(self.slots):
            if int(indices.max()) >= 2**31:
                raise fail("train", "keys below 2**31 in a stream, for a SampleCache", int(indices.max()))
            self.slots = _grown(self.slots, int(indices.max()) + 1, _NONE)
        self._make_room(indices, images.shape[1:])
        slots = self.slots[indices]
        self.epochs[slots], self.fooled[slots], self.images[slots] = epochs, fooled, images

    def packed(self, images: Tensor) -> Tensor:
        """Return images as they are stored, uint8 or float16."""
        return ((images * 255).round() if self.rule.dtype == "uint8" else images).to(self.images.dtype)

    def unpacked(self, images: Tensor) -> Tensor:
        """Return stored images as float in [0, 1]."""
        return images.float() / 255 if self.rule.dtype == "uint8" else images.float()

    def _make_room(self, indices: Tensor, shape: torch.Size) -> None:
        """Give a slot to each image that has none."""
        most, new = self.rule.most, indices[self.slots[indices] == _NONE]
        fresh = len(new) if most is None else min(len(new), most - self.count)
        size = self.count + fresh
        if size > len(self.owners):
            room = max(size, 2 * len(self.owners))
            room = room if most is None else min(room, most)
            for name in _COLUMNS[:-1]:
                setattr(self, name, _grown(getattr(self, name), room))
            self._map(room, shape)
        slots = torch.arange(self.count, size)
        self.count = size
        if fresh < len(new):  # the oldest of other images make room
            made = self.epochs[:size].clone()
            made[self.slots[indices[self.slots[indices] != _NONE]]] = torch.iinfo(torch.int64).max
            made[slots] = torch.iinfo(torch.int64).max
            oldest = made.argsort(stable=True)[: len(new) - fresh]
            self.slots[self.owners[oldest]] = _NONE
            slots = torch.cat([slots, oldest])
        self.slots[new] = slots
        self.owners[slots] = new

    def _map(self, room: int, shape: torch.Size) -> None:
        """Make the file large enough, and map it.

        Raises:
            OSError: naming the folder, where its disk has no room.
        """
        if self._file is None:
            with TemporaryFile(prefix="sample-cache-") as file:
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
        size = room * shape.numel() * self.images.dtype.itemsize
        try:  # a mapped file that lacks room would end the process without a message
            os.posix_fallocate(self._file, 0, size) if _RESERVES else os.truncate(self._file, size)
        except OSError as error:
            told = f"a sample cache of {size / 1e9:.3g} GB in {gettempdir()}: {error.strerror}"
            raise OSError(error.errno, f"{told}; set TMPDIR to a folder with room, or SampleCache(most=…)") from error
        self.images = torch.frombuffer(mmap(self._file, size), dtype=self.images.dtype).view(room, *shape)


def _grown(tensor: Tensor, size: int, fill: int = 0) -> Tensor:
    """Return the tensor with more rows."""
    return torch.cat([tensor, tensor.new_full((size - len(tensor), *tensor.shape[1:]), fill)])
