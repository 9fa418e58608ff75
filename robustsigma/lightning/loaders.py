"""Data loaders whose order and randomness depend only on a seed, the epoch and each image's index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from lightning_fabric.utilities.data import sized_len
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from robustsigma.data.datasets import CheckedStream
from robustsigma.data.loading import Augmentation, default_workers, divided, subsample
from robustsigma.engine.global_rng import key_of, temporary_seed
from robustsigma.engine.validation import boolean, fail, integer
from robustsigma.lightning.batch import Batch
from robustsigma.lightning.keyed_datasets import Key, KeyedDataset, KeyedStream, collate_keyed


class KeySampler(DistributedSampler[Any]):
    """Yields the `Key`s of one process.

    It is a DistributedSampler so that Lightning keeps it and tells it the epoch. In training, each image belongs to one
    process in every epoch, which keeps its cached samples. Processes wait for each other after each batch, so all have
    equally many keys: where the images cannot be divided evenly, the last key of some processes is padding. In
    evaluation there is no padding.

    Args:
        indices: indices of the images.
        shuffle: whether to draw the order from the seed and the epoch; otherwise the order is the given one and the
            epoch always 0.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes.
        sampler: what draws the order of all processes in each epoch, instead of a shuffle; it yields some of `indices`.
            Where a process owns more of these than its part, others process the rest.

    Raises:
        ValueError: in an evaluation of fewer images than processes, which would wait for each other forever.
    """

    def __init__(
        self,
        indices: Sequence[int],
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        sampler: Sampler | None = None,
    ) -> None:
        if not shuffle and 0 < len(indices) < world_size:
            raise fail("images", f"one or more for each of {world_size} processes", len(indices))
        images: Any = range(len(indices if sampler is None else sampler))  # type: ignore[arg-type]
        super().__init__(images, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)  # uses its length only
        self.indices, self.drawn_by, self.count = indices, sampler, len(images)
        self.skip = 0  # number of keys that the next iteration leaves out at its start
        self._counts: list[int] = []  # of images of each process in this epoch, without padding
        self._owners = torch.zeros(max(indices, default=-1) + 1, dtype=torch.int64)  # ranks, by index
        self._owners[torch.as_tensor(indices, dtype=torch.int64)] = torch.arange(len(indices)) % world_size

    def __iter__(self) -> Iterator[Key]:
        """Yield this process's keys."""
        skip, self.skip = self.skip, 0
        return islice(self._keys(), skip, None)

    def _keys(self) -> Iterator[Key]:
        if not self.shuffle:
            return (Key(0, index) for index in self.indices[self.rank :: self.num_replicas])
        if self.drawn_by is None:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            drawn = torch.randperm(self.count, generator=generator).tolist()
            order, repeats = [self.indices[place] for place in drawn], [0] * self.count
        else:
            order, repeats = self._drawn(self.drawn_by)
        places, padding = self._dealt(torch.tensor(order, dtype=torch.int64))
        own = (Key(self.epoch, order[place], repeat=repeats[place]) for place in places)
        return chain(own, (Key(self.epoch, order[place], is_padding=True) for place in padding))

    def images(self, batch_idx: int, batch_size: int) -> int:
        """Return the number of images, without padding, in a batch of all processes of the training epoch."""
        start = batch_idx * batch_size
        return sum(max(0, min(count, start + batch_size) - start) for count in self._counts)

    def owned(self, indices: Tensor) -> Tensor:
        """Return which of some training images belong to this process: bool (n,), of int64 (n,)."""
        at = indices.cpu()
        known = at < len(self._owners)
        return (known & (self._owners[at * known] == self.rank)).to(indices.device)

    def _dealt(self, order: Tensor) -> tuple[list[int], list[int]]:
        """Return the places of this process in the order of an epoch, and those of its padding."""
        size, owners = len(self), self._owners[order]
        shares = [(owners == rank).nonzero()[:, 0] for rank in range(self.num_replicas)]
        spare = torch.cat([share[size:] for share in shares])
        lacks = [max(0, size - len(share)) for share in shares]
        starts = [sum(lacks[:rank]) for rank in range(len(shares) + 1)]
        parts = [torch.cat([each[:size], spare[i:j]]) for each, i, j in zip(shares, starts, starts[1:], strict=False)]
        self._counts = [len(part) for part in parts]
        places = parts[self.rank].sort().values.tolist()
        return places, (places or [0])[:1] * (size - len(places))

    def _drawn(self, sampler: Sampler) -> tuple[list[int], list[int]]:
        """Return the order of an epoch and how often each image came before: the same in every process and resume."""
        seed = key_of(torch.tensor([self.seed]), f"sampler {self.epoch}")
        generator = getattr(sampler, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        with temporary_seed(seed):
            order = [int(index) if isinstance(index, (int, Tensor)) else index for index in sampler]
        known, seen, repeats = set(self.indices), Counter[int](), []
        wrong = [index for index in order if not isinstance(index, int) or index not in known]
        if wrong or len(order) != self.count:
            got = f"{wrong[0]!r:.80}" if wrong else f"{len(order)} of them"
            raise fail("sampler", f"{self.count} indices of the {len(known)} training images, its length", got)
        for index in order:
            repeats.append(seen[index])
            seen[index] += 1
        return order, repeats

    def __len__(self) -> int:
        return super().__len__() if self.shuffle else len(range(self.rank, len(self.indices), self.num_replicas))


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

    # Called when an epoch starts, with that of a checkpoint or 0; returns whether bytes are converted on the device.
    on_start: Callable[[int], bool] | None = None
    limited = False  # whether the Trainer limits the number of batches, and so knows which is the last
    _served = 0  # batches of this epoch
    _finished = False  # whether they were all that a stream has
    _resumed: dict[str, Any] | None = None  # what `load_state_dict` was given

    def __init__(self, dataset: Dataset[Batch], **options: Any) -> None:
        # Without its own generator, a loader draws a base seed from the global one in each epoch.
        own = {"generator": torch.Generator(), "collate_fn": _unchanged, **options}
        if not options.get("num_workers"):  # DataLoader refuses these then
            own |= {"persistent_workers": False, "prefetch_factor": None}
        super().__init__(dataset, **own)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of an epoch, without those that were served before an interrupt.

        Raises:
            ValueError: in the middle of an epoch that was started with other batches.
        """
        resumed, self._resumed, self._served, self._finished = self._resumed, None, 0, False
        keeps_bytes = self.on_start is not None and self.on_start(resumed["epoch"] if resumed else 0)
        if resumed is not None and resumed["served"] and resumed["order"] and resumed["epoch"] == self._epoch:
            before, now = resumed["order"], self._order()
            changed = {name: value for name, value in before.items() if value != now.get(name)}
            if changed:
                expected = f"one from the end of an epoch, or the settings of the checkpoint: {changed}"
                raise fail("ckpt_path", expected, {name: now.get(name) for name in changed})
            self._served = resumed["served"]
        if isinstance(self.sampler, KeySampler):
            self._served = self._served if self._served < len(self) else 0  # Lightning starts a finished epoch again
            self.sampler.skip = self._served * (self.batch_size or 1)
        batches: Iterator[Batch] = super().__iter__()
        if not isinstance(self.sampler, KeySampler):
            batches = islice(divided(self, lambda batch: batch.indices, batches), self._served, None)
        # Of a loader without a length Lightning requests one batch before the step of the last.
        ahead = sized_len(self) is None and not self.limited
        for batch in batches:
            self._served += not ahead
            yield batch if keeps_bytes else batch.with_pixels()
            self._served += ahead
        self._finished = True

    @property
    def _epoch(self) -> int:
        return getattr(self.dataset if isinstance(self.dataset, KeyedStream) else self.sampler, "epoch", 0)

    def _order(self) -> dict[str, Any]:
        """Return what decides which images the next batch has."""
        if isinstance(self.dataset, KeyedStream):
            return {"batch_size": self.batch_size, "num_workers": self.num_workers}
        if not isinstance(self.sampler, KeySampler):
            return {}
        sampler = self.sampler
        processes, images = sampler.num_replicas, sampler.count
        return {"batch_size": self.batch_size, "images": images, "processes": processes, "seed": sampler.seed}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch; Lightning keeps it in checkpoints."""
        served = 0 if self._finished else self._served
        return {"epoch": self._epoch + self._finished, "served": served, "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state: the next iteration, if it is of the same epoch, leaves out what was served."""
        self._resumed = dict(state_dict)


def make_loader(
    dataset: Dataset[Any],
    *,
    augment: Augmentation | None,
    seed: int,
    shuffle: bool,
    limit: int | None,
    sampler: Sampler | None,
    ranks: tuple[int, int],
    **options: Any,
) -> ResumableLoader:
    """Return the loader of a process for a `CheckedStream` or a dataset of images by index.

    Args:
        dataset: where images come from.
        augment: transform of each image, or None.
        seed: seed of order, choice and augmentation.
        shuffle: whether to draw a new order in each epoch.
        limit: largest number of images, or None.
        sampler: as in `KeySampler`.
        ranks: rank of this process, and number of processes.
        options: as of DataLoader; `num_workers` may be None, and so may `prefetch_factor` and `persistent_workers`.

    Raises:
        ValueError: a stream with a limit or a sampler, or a batch larger than an epoch that leaves out smaller ones.
    """
    if options["num_workers"] is None:
        options["num_workers"] = default_workers(dataset, ranks[1])
    if isinstance(dataset, CheckedStream):
        for name, value in (("limits", limit), ("sampler", sampler)):
            if value is not None:
                raise fail(name, f"none for {dataset.name}, whose images come in a stream", value)
        # New workers in each epoch, which know its number.
        keyed = KeyedStream(dataset, augment, seed)
        return ResumableLoader(keyed, **{**options, "collate_fn": collate_keyed, "persistent_workers": False})
    indices = subsample(len(dataset), limit, seed)  # type: ignore[arg-type]
    if options.get("persistent_workers") is None:
        options["persistent_workers"] = shuffle  # several loaders of conditions would keep as many sets of processes
    keys = KeySampler(indices, shuffle=shuffle, seed=seed, rank=ranks[0], world_size=ranks[1], sampler=sampler)
    if options["drop_last"] and len(keys) < options["batch_size"]:
        expected = f"at most {len(keys)}, the images of an epoch, with drop_last"
        raise fail("batch_size", expected, options["batch_size"])
    return ResumableLoader(KeyedDataset(dataset, augment, seed), sampler=keys, **options)


def worker_options(num_workers: int | None, prefetch_factor: int | None, persistent: bool | None) -> dict[str, Any]:
    """Return checked options of `make_loader`, as of DataLoader or None."""
    return {
        "num_workers": None if num_workers is None else integer("num_workers", num_workers, 0),
        "prefetch_factor": None if prefetch_factor is None else integer("prefetch_factor", prefetch_factor, 1),
        "persistent_workers": None if persistent is None else boolean("persistent_workers", persistent),
    }
