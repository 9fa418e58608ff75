"""The images of a user, whatever holds them, as blocks of pixels in [0, 1] with class indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from robustsigma.data import loading
from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, PixelDataset, adapt_and_check
from robustsigma.data.image_files import FileDataset
from robustsigma.data.loading import default_workers, divided, subsample
from robustsigma.engine.global_rng import with_own_draws
from robustsigma.engine.network_state import as_pixels, at_least_single
from robustsigma.engine.noise import pixel_hash
from robustsigma.engine.validation import channels_last, extent, fail, warn
from robustsigma.evaluation.given_models import GivenModels
from robustsigma.evaluation.unwrapped_data import (
    Pair,
    PixelBatches,
    as_it_is,
    class_names,
    collate,
    data_name,
    in_any_order,
    unwrapped,
)
from robustsigma.lightning.batch_images import OVERSHOOT, BatchField, Place, class_indices
from robustsigma.runs import fingerprint
from robustsigma.runs.ranks import Ranks

_BATCH = 128
_ROUNDING = 4e-6
_SLACK = 0.02  # of un-normalized pixels, which were rounded
_DATA = "a Dataset, a DataLoader, a pair (images, labels), a LightningDataModule or a DatasetSpec"
_SPLITS = ("test", "val", "train")


class Block(NamedTuple):
    """Some images: row of the first one, places in the data (B,), pixels (B, C, H, W) in [0, 1], classes (B,)."""

    start: int
    indices: Tensor
    images: Tensor
    labels: Tensor


@dataclass
class GivenImages:
    """The images of an evaluation.

    Args:
        source: batches in a fixed order; or a dataset, whose items `collate` makes a batch of.
        name: name of the data.
        classes: names of the classes, or None if the data have none.
        fields: places of images and labels in a batch.
        to_pixels: turns floating images into pixels.
        unnormalizes: whether it changes anything.
        indices: indices of the images that are used, or None for a source of batches.
        most: largest number of images, of a source of batches.
        batch_size: images in a block, of a dataset.
        collate: makes a batch of items of a dataset, which may return whole batches.
        num_workers: loading processes of a dataset.
        origin: the dataset itself, which may have masks.
        seed: seed of what a source of batches draws from the global generators, the same in every pass.
    """

    source: Any
    name: str
    classes: tuple[str, ...] | None
    fields: tuple[BatchField, BatchField] = (BatchField("images", 0), BatchField("labels", 1))
    to_pixels: Callable[[Tensor], Tensor] = as_it_is
    unnormalizes: bool = False
    indices: list[int] | None = None
    most: int | None = None
    batch_size: int = 128
    collate: Callable[[list[Any]], Any] = as_it_is
    num_workers: int = 0
    origin: Any = None
    seed: int = 0
    _warned: bool = False

    @property
    def count(self) -> int | None:
        """Number of images, or None if only their end tells it."""
        return None if self.indices is None else len(self.indices)

    def blocks(self, wanted: Sequence[tuple[int, int]] | None = None) -> Iterator[Block]:
        """Yield images in order.

        Args:
            wanted: the first row of each block, and that after its last one; None is every block, which alone a source
                of batches can tell. No block reads nothing.
        """
        if wanted is not None and not wanted:
            return
        if self.indices is not None:
            every = [(k, k + self.batch_size) for k in range(0, len(self.indices), self.batch_size)]
            chosen = {start: self.indices[start:stop] for start, stop in wanted or every}
            yield from self._of_dataset(chosen, self.num_workers)
            return
        generator = getattr(self.source, "generator", None)  # a shuffling loader draws from it
        state = None if generator is None else generator.get_state()
        try:
            yield from self._of_batches()
        finally:
            if generator is not None:
                generator.set_state(state)

    def _of_dataset(self, chosen: Mapping[int, list[int]], num_workers: int) -> Iterator[Block]:
        """Yield blocks, whose indices are given by their first rows."""
        own = torch.Generator()  # without one, it draws from the global one
        loader = DataLoader(
            self.source,
            batch_sampler=list(chosen.values()),
            collate_fn=self.collate,
            num_workers=num_workers,
            generator=own,
        )
        batches = iter(loader)
        for start, indices in chosen.items():
            try:
                batch = next(batches)
            except Exception:
                self._name_unreadable(indices)
                raise
            yield self._block(start, batch, torch.tensor(indices))

    def _name_unreadable(self, indices: Sequence[int]) -> None:
        """Raise with the index of the first item that a dataset of a user cannot return."""
        for index in indices if hasattr(type(self.source), "__getitem__") else ():
            try:
                self.source[index]
            except NotImplementedError:  # of a dataset that returns whole batches
                return
            except Exception as error:
                raise fail("data", "items that can be read", f"{type(error).__name__} at {index}: {error}") from error

    def _of_batches(self) -> Iterator[Block]:
        start = 0
        batches = self.source
        if isinstance(batches, DataLoader):
            batches = divided(batches, lambda batch: pixel_hash(self._pixels(self.fields[0].get(batch))))
        for batch in with_own_draws(batches, self.seed):  # a sampler or a transform may draw
            if self.most is not None and start >= self.most:
                return
            block = self._block(start, batch)
            left = None if self.most is None else self.most - start
            yield Block(start, *(part[:left] for part in block[1:]))
            start += len(block.labels)

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels of some rows, which are increasing."""
        if self.indices is not None:
            (block,) = self._of_dataset({0: [self.indices[row] for row in rows]}, 0)
            return block.images, block.labels
        wanted, found = torch.tensor(rows), []
        for block in self.blocks():
            kept = torch.isin(block.indices, wanted)
            found.append([part[kept] for part in block[1:]])
            if int(block.indices[-1]) >= rows[-1]:
                break
        if not found:
            raise fail("data", "at least one image", "none")
        _, images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return images, labels

    def fingerprint(self) -> dict[str, Any]:
        """Return what identifies the content, in plain JSON types: of a source of batches, of its first images."""
        if isinstance(self.origin, FileDataset) and self.indices is not None:  # whose files need not be decoded for it
            return loading.fingerprint(Subset(self.origin, self.indices))
        if self.indices is not None:
            return fingerprint.items(_Items(self, self.source))
        first = next(self.blocks(), None)
        if first is None:
            return {}
        found = {"first": fingerprint.describe(first.images), "labels": fingerprint.describe(first.labels)}
        indexed = isinstance(self.origin, Sized) and not isinstance(self.origin, (IterableDataset, Mapping))
        if isinstance(self.source, DataLoader) and indexed:  # a loader in an order of its own
            places, collate = list(range(len(self.origin))), self.source.collate_fn
            whole = replace(self, source=self.origin, indices=places, collate=collate)
            found["dataset"] = fingerprint.items(_Items(whole, self.origin))
        return found

    def check_ranks(self, ranks: Ranks) -> None:
        """Raise in every rank if some rank has other images, as of a stream that divides itself among ranks."""
        own = ranks.gather(self.fingerprint() if ranks.world_size > 1 else None)
        other = next((rank for rank, each in enumerate(own) if each != own[0]), None)
        if other is not None:
            got = f"others in rank {other} than in rank 0, as from DistributedSampler or a stream divided by ranks"
            got += "; pass the data undivided (a WebDataset with nodesplitter=None), or use one process"
            raise fail("data", "the same images in every rank, since the ranks divide them", got)

    def _block(self, start: int, batch: Any, indices: Tensor | None = None) -> Block:
        images, labels = (field.get(batch) for field in self.fields)
        pixels = self._pixels(images)
        classes = _labels(labels, len(pixels))
        return Block(start, torch.arange(start, start + len(pixels)) if indices is None else indices, pixels, classes)

    def _pixels(self, given: Any) -> Tensor:
        if not isinstance(given, Tensor) or given.ndim != 4 or 0 in given.shape:
            got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            hint = "name their place in a batch with images=…, or convert them to tensors"
            raise fail("images", f"a tensor (B, C, H, W) at {self.fields[0].place!r} of a batch", f"{got}; {hint}")
        if given.shape[-1] == 3 and channels_last(tuple(given.shape[1:])):
            got = f"shape {tuple(given.shape)}, channels last; use permute(0, 3, 1, 2)"
            raise fail("images", "a batch (B, C, H, W)", got)
        if given.dtype == torch.uint8:
            return as_pixels(given)
        if not given.is_floating_point():
            raise fail("images", "a floating dtype or uint8", f"{given.dtype}")
        pixels = at_least_single(self.to_pixels(given))
        if self.unnormalizes:  # rounding moved bytes a little, and an image's seed is a hash of its pixels
            levels = (255 * pixels).round() / 255
            pixels = torch.where((pixels - levels).abs() < _ROUNDING, levels, pixels)
        if pixels.shape != given.shape:
            raise fail("normalized", f"a function to pixels {tuple(given.shape)}", tuple(pixels.shape))
        low, high = extent(pixels)
        if not low - low == high - high == 0:
            raise fail("images", "finite values", "NaN or infinity")
        slack = _SLACK if self.unnormalizes else 1e-6
        if low < -slack or high > 1 + slack:
            raise self._out_of_range(low, high)
        if self.unnormalizes and not self._warned and len(given) > 1 and given.min() >= 0 and given.max() <= 1:
            self._warned = True
            warn("normalized: the images are in [0, 1] before un-normalization; leave it out if they are pixels")
        return pixels.clamp(0, 1)

    def _out_of_range(self, low: float, high: float) -> ValueError:
        got = f"[{low:.3g}, {high:.3g}]"
        if self.unnormalizes:
            hint = "mean and std are those of the Normalize transform, for images in [0, 1]"
            return fail("images", "pixels in [0, 1] after un-normalization", f"{got}; {hint}; {OVERSHOOT}")
        if low >= 0 and high > 3:
            hint = "divide by 255, or pass uint8"
        else:
            hint = "normalized images need normalized=True with the mean and std of their Normalize transform"
            hint += f"; {OVERSHOOT}"
        return fail("images", "values in [0, 1], or uint8", f"{got}; {hint}")


class _Items(Dataset[tuple[Tensor, Tensor]]):
    """The used items of a dataset as (pixels, label), for their fingerprint."""

    def __init__(self, images: GivenImages, dataset: Any) -> None:
        self.images, self.dataset = images, dataset
        self.indices = images.indices or []

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        pixels, labels = self.images.load([row])
        return pixels[0], labels[0]


def _labels(given: Any, count: int) -> Tensor:
    """Return class indices; of probabilities (B, K), also one-hot ones, the most probable class."""
    labels = class_indices(_as_indices(given))
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (count,):
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise fail("labels", f"integers ({count},), one class index per image, or probabilities ({count}, K)", got)
    return labels.long()


def _are_pair(images: Any, labels: Any) -> bool:
    """Return whether two parts are the images and the labels, rather than two items or two batches."""
    return hasattr(images, "ndim") and (hasattr(labels, "ndim") or isinstance(labels, (list, tuple)))


def _as_indices(given: Any) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise fail("labels", "class indices", repr(given)[:80]) from None


def given_images(
    data: Any,
    models: GivenModels,
    places: tuple[Place, Place],
    max_images: int | None,
    batch_size: int | None,
    num_workers: int | None,
    seed: int,
) -> GivenImages:
    """Return the images of any data; arguments as of `evaluate`.

    Raises:
        ValueError: data that cannot be read, or a dataset that does not fit the models' cards.
    """
    (source, split), name = unwrapped(data), data_name(data)
    if isinstance(source, (str, Path)):
        hint = "robustsigma.data.ImageFolder(…) reads a folder of classes"
        raise fail("data", _DATA, f"the text {str(source)!r}; {hint}")
    if isinstance(source, Mapping) and 0 not in source:
        told = f"a mapping of {', '.join(map(repr, [*source][:5]))}; pass a pair of its images and its labels"
        raise fail("data", _DATA, told)
    if isinstance(source, DatasetSpec):
        for model, card in models.cards.items():
            source = adapt_and_check(source, card.classes, card.shape, card.geometry, f"model[{model!r}]")
        classes: tuple[str, ...] | None = source.classes
        split = next(each for each in _SPLITS if each in source.splits)
        source = source.split(split)
    else:
        classes = class_names(source)
    found = GivenImages(
        source,
        name if split in (None, "test") else f"{name} ({split})",
        classes,
        (BatchField("images", places[0]), BatchField("labels", places[1])),
        models.to_pixels,
        models.unnormalizes,
        most=max_images,
        batch_size=batch_size or getattr(source, "batch_size", None) or _BATCH,
        collate=collate,
        num_workers=default_workers(source) if num_workers is None else num_workers,
        origin=source.dataset if isinstance(source, DataLoader) else source,
        seed=seed,
    )
    if isinstance(source, DataLoader):
        if not in_any_order(source):
            return found
        found.source, found.collate, found.num_workers = source.dataset, source.collate_fn, source.num_workers
    elif isinstance(source, PixelDataset):
        found.source, found.collate = PixelBatches(source), as_it_is
    elif isinstance(source, ArrayDataset):
        found.source, found.collate = Pair(source.images, source.labels), as_it_is
    elif isinstance(source, (tuple, list)) and len(source) == 2 and _are_pair(*source):
        pair = [torch.as_tensor(source[0]), _as_indices(source[1])]
        if len(pair[0]) != len(pair[1]):
            raise fail("data", "as many labels as images", f"{len(pair[1])} and {len(pair[0])}")
        found.source, found.collate, found.name = Pair(*pair), as_it_is, "images"
    elif isinstance(source, IterableDataset) or not hasattr(source, "__getitem__"):
        if isinstance(source, IterableDataset):
            found.source = DataLoader(source, found.batch_size, collate_fn=collate, num_workers=found.num_workers)
        elif isinstance(source, Iterator) or not isinstance(source, Iterable):
            told = "; an iterator can be read only once" if isinstance(source, Iterator) else ""
            raise fail("data", _DATA, type(source).__name__ + told)
        return found
    found.indices = subsample(len(found.source), max_images, seed)
    if not found.indices:
        raise fail("data", "at least one image", "none")
    return found
