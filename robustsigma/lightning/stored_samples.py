"""Storage of one sample cache: the last SIGMA sample of each image, with the epoch in which it was made."""

from __future__ import annotations

import torch
from torch import Tensor

from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.engine.validation import fail

_NONE = -1
_COLUMNS = ("owners", "epochs", "fooled", "images")
_TYPES = {"uint8": torch.uint8, "float16": torch.float16}


class StoredSamples:
    """The last sample of each image, with the epoch in which it was made.

    Memory on the device of the batches: C·H·W bytes an image in uint8 (3 kB at 3x32x32, 12 kB at 3x64x64, 147 kB at
    3x224x224), twice that in float16, and 25 bytes. Without a limit it grows with the number of images.

    Args:
        rule: how long and in which type samples are kept.
    """

    def __init__(self, rule: SampleCache) -> None:
        self.rule = rule
        self.slots = torch.full((0,), _NONE)  # by index in the dataset; the tensors below are by slot
        self.owners = torch.zeros(0, dtype=torch.int64)
        self.epochs = torch.zeros(0, dtype=torch.int64)
        self.fooled = torch.zeros(0, dtype=torch.bool)
        self.images = torch.zeros(0, dtype=_TYPES[rule.dtype])
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples, on the CPU."""
        return {name: getattr(self, name)[: self.count].cpu().clone() for name in _COLUMNS}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore samples, unless they are of another type or more than the limit."""
        most = self.rule.most
        if state["images"].dtype != _TYPES[self.rule.dtype] or (most is not None and len(state["owners"]) > most):
            return
        for name in _COLUMNS:
            setattr(self, name, state[name].clone())
        self.count = len(self.owners)
        self.slots = torch.full((int(self.owners.max()) + 1 if self.count else 0,), _NONE)
        self.slots[self.owners] = torch.arange(self.count)

    def recall(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the stored samples of some of n images, of which k have one.

        Args:
            indices: int64 (n,).
            epoch: current epoch.

        Returns:
            (n,) bool, which images have a sample; (k,) int64, the ages of the samples in epochs; (k,) bool, True where
            the network misclassified the sample when it was made; the samples, float (k, C, H, W).
        """
        self._to(indices.device)
        known = indices < len(self.slots)
        slots = torch.full_like(indices, _NONE)
        slots[known] = self.slots[indices[known]]
        has = slots != _NONE
        at = slots[has]
        return has, epoch - self.epochs[at], self.fooled[at], self.unpacked(self.images[at])

    def store(self, indices: Tensor, images: Tensor, fooled: Tensor, epoch: int) -> None:
        """Store the samples of n different images; where there is a limit, they replace the oldest of other images.

        Args:
            indices: int64 (n,).
            images: float (n, C, H, W) in [0, 1].
            fooled: bool (n,), which samples the network misclassifies now.
            epoch: current epoch.
        """
        most = self.rule.most
        if most is not None:
            indices, images, fooled = indices[:most], images[:most], fooled[:most]
        if len(indices) == 0:
            return
        self._to(indices.device)
        if int(indices.max()) >= len(self.slots):
            if int(indices.max()) >= 2**31:
                raise fail("train", "keys below 2**31 in a stream, for a SampleCache", int(indices.max()))
            self.slots = _grown(self.slots, int(indices.max()) + 1, _NONE)
        self._make_room(indices, images.shape[1:])
        slots = self.slots[indices]
        self.epochs[slots], self.fooled[slots] = epoch, fooled
        self.images[slots] = self.packed(images)

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
            self.images = self.images if self.images.ndim > 1 else self.images.new_zeros(0, *shape)
            for name in _COLUMNS:
                setattr(self, name, _grown(getattr(self, name), room))
        slots = torch.arange(self.count, size, device=new.device)
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

    def _to(self, device: torch.device) -> None:
        for name in ("slots", *_COLUMNS):
            setattr(self, name, getattr(self, name).to(device))


def _grown(tensor: Tensor, size: int, fill: int = 0) -> Tensor:
    """Return the tensor with more rows."""
    return torch.cat([tensor, tensor.new_full((size - len(tensor), *tensor.shape[1:]), fill)])
