"""Sample caches of a training: SIGMA samples are reused until they are too old or the network has learned them."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Perturbation, Perturbed
from robustsigma.lightning.batch import Batch, CacheStats
from robustsigma.lightning.stored_samples import StoredSamples
from robustsigma.lightning.training_perturbation import batch_parts


class ProcessRank(NamedTuple):
    """Which rows of a batch that several processes share one of them has: every `world_size`-th, from `rank` on."""

    rank: int = 0
    world_size: int = 1

    def gather(self, rows: Tensor, indices: Tensor, *columns: Tensor) -> list[Tensor]:
        """Return the indices and columns of all processes, in the order of the whole batch, each image once.

        Every process has to call it, even without rows.

        Args:
            rows: int64 (n,), positions in this process's batch.
            indices: int64 (n,), indices of the images; an image that is padding somewhere occurs twice.
            columns: tensors (n, ...), equal in type and shape on all processes except for n.
        """
        if self.world_size == 1:
            return [indices, *columns]
        places, *found = (
            torch.cat(gather_all_tensors(each)) for each in (rows * self.world_size + self.rank, indices, *columns)
        )
        order = places.argsort()
        whose = found[0][order]
        seen = (whose[:, None] == whose[None, :]).tril(-1).any(1)
        return [each[order][~seen] for each in found]


class SampleCaches:
    """One cache for each `SigmaSample` with a `SampleCache` in the training perturbation.

    An image gets its cached sample where its perturbation would make a SIGMA sample, and a recent one still fools the
    network or never did because its walk was too short. Other images are perturbed as without a cache.

    With a cache, an image keeps its part of the mixture for `max_age` + 1 epochs, counted from an epoch of its own. If
    parts were drawn in each epoch, an image would seldom need a second sample before the first is too old. The shares
    are the same in expectation, and the noise is new in each epoch.

    Args:
        seed: seed of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.caches: dict[str, StoredSamples] = {}  # by the place of the `SigmaSample` in the perturbation
        self._made_by: dict[str, str] = {}  # the settings of that `SigmaSample`
        self._loaded: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the samples of all caches."""
        return {name: {**cache.state_dict(), "made_by": self._made_by[name]} for name, cache in self.caches.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore state; samples of another perturbation are dropped with a warning when they are first needed."""
        self.caches, self._loaded = {}, dict(state)

    def apply(
        self,
        perturbation: Perturbation,
        classifier: Classifier,
        batch: Batch,
        *,
        seeds: Tensor,
        epoch: int,
        process: ProcessRank = ProcessRank(),  # noqa: B008 - immutable
    ) -> tuple[Perturbed, CacheStats]:
        """Perturb a batch, using and filling the caches; see `Perturbation.apply`.

        Args:
            perturbation: training perturbation.
            classifier: network to perturb against.
            batch: clean batch; images that are padding, or there twice, neither use nor fill a cache.
            seeds: int64 (B,), per image.
            epoch: current epoch.
            process: which part of a batch of several processes this is; each process keeps the samples of all.

        Returns:
            The perturbed batch, in which a cached sample is not an attempted search, and what the caches provided.
        """
        images, labels = batch.images, batch.labels
        rules = [part.cache for part in batch_parts(perturbation, seeds, seeds) if part.cache is not None]
        if not rules:
            return perturbation(classifier, images, labels, seed=seeds, return_info="search"), CacheStats.empty(images)
        period = max(rule.max_age for rule in rules) + 1
        parts = list(batch_parts(perturbation, seeds, self._draws(batch.indices, epoch, period)))
        again = (batch.indices[:, None] == batch.indices).tril(-1).any(1)  # drawn twice by a sampler
        requested, own = [], ~batch.is_padding & ~again
        for part in parts:
            if part.cache is not None:
                if part.name not in self.caches:
                    self._create(part.name, StoredSamples(part.cache), part.perturbation)
                requested.append((self.caches[part.name], part.rows[own[part.rows]]))
        result, stats = _cached(requested, classifier, batch, epoch)
        for part in parts:
            missed = ~stats.hits[part.rows]
            rows = part.rows[missed]
            if len(rows):
                made = part.perturbation(
                    classifier, images[rows], labels[rows], seed=part.seeds[missed], return_info="search"
                )
                result = result.put(rows, made)
        _store(requested, result, classifier, batch, epoch, process)
        return result, stats

    def _draws(self, indices: Tensor, epoch: int, period: int) -> Tensor:
        """Return seeds (B,) that stay the same for `period` epochs and change in an epoch of each image's own."""
        start = torch.full_like(indices, self.seed)
        phase = noise.fold(start, "phase", indices) % period
        return noise.fold(start, "parts", (epoch + phase) // period, indices)

    def _create(self, name: str, cache: StoredSamples, perturbation: Perturbation) -> None:
        self.caches[name], self._made_by[name] = cache, repr(perturbation)
        loaded = self._loaded.pop(name, None)
        if loaded is not None and loaded["made_by"] == repr(perturbation):
            cache.load_state_dict(loaded)
        elif loaded is not None:
            told = "is of another perturbation; it is dropped"
            warnings.warn(f"ckpt_path: the checkpoint's sample cache of {perturbation} {told}", stacklevel=3)


def _cached(
    requested: list[tuple[StoredSamples, Tensor]], classifier: Classifier, batch: Batch, epoch: int
) -> tuple[Perturbed, CacheStats]:
    """Return the batch with usable cached samples in place; `requested` has the rows for each cache."""
    result, stats = Perturbed.plain(batch.images), CacheStats.empty(batch.images)
    columns = []
    for cache, rows in requested:
        has, *stored = cache.recall(batch.indices[rows], epoch)
        at, young = rows[has], stored[0] <= cache.rule.max_age
        stats.requested[rows], stats.expired[at] = True, ~young
        if young.any():
            columns.append([column[young] for column in (at, *stored)])
    if columns:
        at, ages, fooled, samples = (torch.cat(column) for column in zip(*columns, strict=True))
        with classifier.frozen():
            correct = classifier.logits(samples).argmax(1) == batch.labels[at]
        stale = fooled & correct  # a sample that never fooled the network stays usable
        stats.stale[at], stats.hits[at], stats.ages[at] = stale, ~stale, ages * ~stale
        result = result.put(at[~stale], Perturbed.plain(samples[~stale]))
    return result, stats


def _store(
    requested: list[tuple[StoredSamples, Tensor]],
    result: Perturbed,
    classifier: Classifier,
    batch: Batch,
    epoch: int,
    process: ProcessRank,
) -> None:
    """Store the new samples of all processes."""
    new = result.attempted & (result.images != batch.images).flatten(1).any(1)
    every = torch.cat([rows for _, rows in requested])
    every = every[new[every]]
    fooled = torch.zeros_like(new)
    if len(every):
        with classifier.frozen():
            fooled[every] = classifier.logits(result.images[every]).argmax(1) != batch.labels[every]
    for cache, rows in requested:
        fresh = rows[new[rows]]
        packed = cache.packed(result.images[fresh])
        whose, packed, fools = process.gather(fresh, batch.indices[fresh], packed, fooled[fresh])
        cache.store(whose, cache.unpacked(packed), fools, epoch)
