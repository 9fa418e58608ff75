"""The bank of SIGMA samples: the last one of each image, with the epoch in which it was made."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustsigma.engine.perturbations.path_samples import SampleCache

_NONE = -1
_KEPT = ("owners", "made", "fooled", "images")
_TYPES = {"uint8": torch.uint8, "float16": torch.float16}


class Recalled(NamedTuple):
    """What a bank has of n images, k of which have a sample.

    Attributes:
        has: (n,) bool, which have one.
        ages: (k,) int64, in epochs.
        fooled: (k,) bool, True where the network misclassified the sample when it was made.
        images: float (k, C, H, W).
    """

    has: Tensor
    ages: Tensor
    fooled: Tensor
    images: Tensor


class StoredSamples:
    """The last sample of each image, with the epoch in which it was made.

    Memory: C·H·W bytes an image in uint8 (3 kB at 3x32x32, 12 kB at 3x64x64, 147 kB at 3x224x224), twice that in
    float16, and 25 bytes; on the device of the batches. Without a limit it grows with the images that were banked.

    Args:
        rule: how long a sample is kept, and how.
    """

    def __init__(self, rule: SampleCache) -> None:
        self.rule = rule
        self.slots = torch.full((0,), _NONE)  # by index in the dataset
        self.owners = torch.zeros(0, dtype=torch.int64)  # by slot, as the next three
        self.made = torch.zeros(0, dtype=torch.int64)
        self.fooled = torch.zeros(0, dtype=torch.bool)
        self.images = torch.zeros(0, dtype=_TYPES[rule.dtype])
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples, on the CPU."""
        kept = {name: getattr(self, name)[: self.count] for name in _KEPT}
        return {name: tensor.cpu().clone() for name, tensor in kept.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave, of a bank that keeps as many in the same type; drop it otherwise."""
        most = self.rule.most
        if state["images"].dtype != _TYPES[self.rule.dtype] or (most is not None and len(state["owners"]) > most):
            return
        for name in _KEPT:
            setattr(self, name, state[name].clone())
        self.count = len(self.owners)
        self.slots = torch.full((int(self.owners.max()) + 1 if self.count else 0,), _NONE)
        self.slots[self.owners] = torch.arange(self.count)

    def recall(self, indices: Tensor, epoch: int) -> Recalled:
        """Return what it has of some images (n,) in an epoch."""
        self._to(indices.device)
        known = indices < len(self.slots)
        slots = torch.full_like(indices, _NONE)
        slots[known] = self.slots[indices[known]]
        has = slots != _NONE
        at = slots[has]
        return Recalled(has, epoch - self.made[at], self.fooled[at], self.unpacked(self.images[at]))

    def store(self, indices: Tensor, images: Tensor, fooled: Tensor, epoch: int) -> None:
        """Keep samples (n, C, H, W) of n different images; the oldest of others make room where a limit is reached.

        `fooled` (n,) says which ones the network misclassifies now.
        """
        most = self.rule.most
        if most is not None:
            indices, images, fooled = indices[:most], images[:most], fooled[:most]
        if len(indices) == 0:
            return
        self._to(indices.device)
        if int(indices.max()) >= len(self.slots):
            self.slots = _grown(self.slots, int(indices.max()) + 1, _NONE)
        new = indices[self.slots[indices] == _NONE]
        self._make_room(new, indices, images)
        slots = self.slots[indices]
        self.made[slots], self.fooled[slots] = epoch, fooled
        self.images[slots] = self.packed(images)

    def packed(self, images: Tensor) -> Tensor:
        """Return images as they are kept, uint8 or float16."""
        return ((images * 255).round() if self.rule.dtype == "uint8" else images).to(self.images.dtype)

    def unpacked(self, images: Tensor) -> Tensor:
        """Return kept images as float in [0, 1]."""
        return images.float() / 255 if self.rule.dtype == "uint8" else images.float()

    def _make_room(self, new: Tensor, current: Tensor, images: Tensor) -> None:
        most = self.rule.most
        fresh = len(new) if most is None else min(len(new), most - self.count)
        size = self.count + fresh
        if size > len(self.owners):
            room = max(size, 2 * len(self.owners))
            room = room if most is None else min(room, most)
            self.owners, self.made, self.fooled = (_grown(t, room) for t in (self.owners, self.made, self.fooled))
            before = self.images if self.images.ndim > 1 else self.images.new_zeros(0, *images.shape[1:])
            self.images = _grown(before, room)
        slots = torch.arange(self.count, size, device=new.device)
        self.count = size
        if fresh < len(new):
            age = self.made[: self.count].clone()
            age[self.slots[current[self.slots[current] != _NONE]]] = torch.iinfo(torch.int64).max
            age[slots] = torch.iinfo(torch.int64).max
            oldest = age.argsort(stable=True)[: len(new) - fresh]
            self.slots[self.owners[oldest]] = _NONE
            slots = torch.cat([slots, oldest])
        self.slots[new] = slots
        self.owners[slots] = new

    def _to(self, device: torch.device) -> None:
        for name in ("slots", *_KEPT):
            setattr(self, name, getattr(self, name).to(device))


def _grown(tensor: Tensor, size: int, fill: int = 0) -> Tensor:
    """Return the tensor with more rows."""
    return torch.cat([tensor, tensor.new_full((size - len(tensor), *tensor.shape[1:]), fill)])
