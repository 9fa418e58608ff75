"""A batch of images and labels, with what is known of how its images were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustsigma.engine.network_state import as_pixels
from robustsigma.engine.perturbations import Perturbed
from robustsigma.engine.validation import fail

T = TypeVar("T")
_IMAGES = ("image", "images", "pixel_values", "x")
_LABELS = ("label", "labels", "target", "targets", "y")


@dataclass(frozen=True, eq=False)
class CacheStats:
    """What the sample caches provided for a batch. B images.

    Attributes:
        requested: (B,) bool, images that were to become samples of a `SigmaSample` with a cache.
        hits: (B,) bool, images that are cached samples.
        expired: (B,) bool, images whose cached sample was too old.
        stale: (B,) bool, images whose cached sample had fooled the network, which now classifies it correctly.
        ages: (B,) int64, age of the cached sample in epochs; 0 where there is no hit.
    """

    requested: Tensor
    hits: Tensor
    expired: Tensor
    stale: Tensor
    ages: Tensor

    @staticmethod
    def empty(images: Tensor) -> CacheStats:
        """Return the statistics of a batch that requests no sample."""
        no = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return CacheStats(no, no.clone(), no.clone(), no.clone(), no.long())

    @property
    def totals(self) -> Tensor:
        """Sums over the images of requested, hits, expired, stale and ages: int64 (5,)."""
        return torch.stack([getattr(self, each.name).sum() for each in fields(self)])


@dataclass(eq=False)  # not frozen, as Lightning's precision plugins set the fields of a copy
class BatchInfo:
    """How the images of a batch were made.

    Attributes:
        condition: name of the perturbation: "train", or a validation or test condition.
        clean: (B, C, H, W), the images before they were perturbed; None in a batch that was not perturbed.
        perturbed: what the perturbation returned; None in a batch that was not perturbed.
        seconds: time that the perturbation took, on the host's clock.
        cache_stats: what the sample caches provided; None outside training.

    Example:
        >>> info = batch.info  # in training_step, of a RobustDataModule
        >>> info.condition, info.clean
    """

    condition: str = "clean"
    clean: Tensor | None = None
    perturbed: Perturbed | None = None
    seconds: float = 0.0
    cache_stats: CacheStats | None = None


@dataclass(eq=False)  # not frozen, for the same reason
class Batch:
    """What the loaders of a `RobustDataModule` yield. B images.

    It is indexed and unpacked as `images, labels = batch`.

    Attributes:
        images: float (B, C, H, W) in [0, 1]; perturbed in the steps of a LightningModule. On the way from a loader to
            the device they may be uint8.
        labels: int64 (B,); or probabilities (B, K), in a batch of your own loader.
        indices: int64 (B,), position of each image in its split, or its key in a stream, from which its noise seed
            derives.
        padding: how many images at the end only pad this process's part of an epoch; see `is_padding`.
        info: how the images were made.
        repeats: int64 (B,), how often a sampler drew each image before in this epoch; None for never.

    Example:
        >>> batch = Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), torch.arange(2))
        >>> images, labels = batch
        >>> len(batch), batch.info.condition
        (2, 'clean')
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    padding: int = 0
    info: BatchInfo = field(default_factory=BatchInfo)
    repeats: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    def __getitem__(self, place: int) -> Tensor:
        return (self.images, self.labels)[place]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; copies to a CUDA device do not block."""
        device = torch.device(device)
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def with_pixels(self) -> Batch:
        """Return the batch with images in [0, 1], if they are bytes."""
        return replace(self, images=as_pixels(self.images)) if self.images.dtype == torch.uint8 else self

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a CUDA device are fast."""
        return _map_tensors(self, Tensor.pin_memory)

    @property
    def is_padding(self) -> Tensor:
        """Where the image only pads this process's part of an epoch, to be as long as the others: bool (B,)."""
        return torch.arange(len(self), device=self.labels.device) >= len(self) - self.padding

    @property
    def changed(self) -> Tensor:
        """Where the image differs from the clean one: bool (B,)."""
        if self.info.clean is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.labels.device)
        return (self.images != self.info.clean).flatten(1).any(1)

    @property
    def sampled(self) -> Tensor:
        """Where the image comes from a search with a goal, such as a new or cached SIGMA sample: bool (B,)."""
        made, stats, found = self.info.perturbed, self.info.cache_stats, self.changed
        if made is not None:
            found = found & made.attempted
        return found if stats is None else found | stats.hits


def _map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _map_tensors(getattr(value, each.name), change) for each in fields(value)})
    return change(value) if isinstance(value, Tensor) else value  # type: ignore[return-value]


def as_batch(batch: Any) -> Batch:
    """Return a batch of any loader as a `Batch`.

    Args:
        batch: a `Batch`; (images, labels, ...); or a mapping with images as "image", "images", "pixel_values" or "x",
            and labels as "label", "labels", "target", "targets" or "y". Images are float (B, C, H, W), or uint8, which
            is divided by 255. Labels are integers (B,) or probabilities (B, K), as CutMix and MixUp make them.

    Raises:
        ValueError: anything else.
    """
    if isinstance(batch, Batch):
        return batch
    parts: list[Any]
    if isinstance(batch, Mapping):
        parts = [next((batch[key] for key in keys if key in batch), None) for keys in (_IMAGES, _LABELS)]
    else:
        parts = list(batch[:2]) if isinstance(batch, (tuple, list)) else []
    if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts):
        got = f"a {type(batch).__name__} of {[*batch]}" if isinstance(batch, Mapping) else type(batch).__name__
        expected = f"tensors (images, labels), a mapping with one of {_IMAGES} and one of {_LABELS}, or a Batch"
        raise fail("batch", expected, got)
    images, labels = parts
    soft = labels.ndim == 2 and labels.is_floating_point()
    if len(labels) != len(images) or not (soft or (labels.ndim == 1 and not labels.is_floating_point())):
        expected = f"integers ({len(images)},) or probabilities ({len(images)}, K)"
        raise fail("labels", expected, f"{labels.dtype} {tuple(labels.shape)}")
    images = as_pixels(images)
    return Batch(images, labels if soft else labels.long(), torch.arange(len(images), device=images.device))
