"""Sample caches of a training: SIGMA samples are reused until they are too old or the network has learned them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Perturbation, Perturbed
from robustsigma.lightning.batch import Batch, CacheStats
from robustsigma.lightning.stored_samples import StoredSamples
from robustsigma.lightning.training_perturbation import BatchPart, batch_parts, perturb_parts


class SampleCaches:
    """One cache for each `SigmaSample` with a `SampleCache` in the training perturbation.

    An image gets its cached sample where its perturbation would make a SIGMA sample, and a recent one still fools the
    network or never did because its walk was too short. Other images are perturbed as without a cache.

    With a cache, an image keeps its part of the mixture for `max_age` + 1 epochs, counted from an epoch of its own. If
    parts were drawn in each epoch, an image would seldom need a second sample before the first is too old. The shares
    are the same in expectation, and the noise is new in each epoch. (Where the numbers of images of the parts are
    fixed for a batch, some images near the border of a part change it earlier.)

    Each process keeps the samples of the images that it owns, and nothing is sent between processes.

    Args:
        seed: seed of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.caches: dict[str, StoredSamples] = {}  # by the place of the `SigmaSample` in the perturbation
        self.owned: Callable[[Tensor], Tensor] | None = None  # which indices (n,) this process owns; None owns all

    def save(self, path: Path) -> None:
        """Write the samples of all caches to a file."""
        found = {name: {**cache.state_dict(), "made_by": cache.made_by} for name, cache in self.caches.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".part{os.getpid()}")  # processes that share a rank of the data write the same
        torch.save(found, part)
        part.replace(path)

    def load(self, paths: Sequence[Path], perturbation: Perturbation) -> None:
        """Take the samples of a training perturbation that this process owns from files.

        Samples of another perturbation are dropped with a warning.
        """
        self.caches, no_images = {}, torch.zeros(0, dtype=torch.int64)
        self._create(batch_parts(perturbation, no_images, no_images))
        for name, cache in self.caches.items():
            for path in paths:
                loaded = torch.load(path, mmap=True, weights_only=True).get(name)
                if loaded is not None and loaded["made_by"] != cache.made_by:
                    told = "is of another perturbation; it is dropped"
                    warnings.warn(f"ckpt_path: the checkpoint's sample cache of {cache.made_by} {told}", stacklevel=3)
                    break
                if loaded is not None:
                    cache.load_state_dict(loaded, self.owned)

    def apply(
        self,
        perturbation: Perturbation,
        classifier: Classifier,
        batch: Batch,
        *,
        seeds: Tensor,
        epoch: int,
        step: int | None = None,
    ) -> tuple[Perturbed, CacheStats]:
        """Perturb a batch, using and filling the caches.

        Args:
            perturbation: training perturbation.
            classifier: network to perturb against.
            batch: clean batch; images that are padding, or there twice, neither use nor fill a cache.
            seeds: int64 (B,), per image.
            epoch: current epoch.
            step: as in `batch_parts`.

        Returns:
            The perturbed batch, in which a cached sample is not an attempted search, and what the caches provided.
        """
        rules = [part.cache for part in batch_parts(perturbation, seeds, seeds) if part.cache is not None]
        if not rules:
            drawn = batch_parts(perturbation, seeds, seeds, step)
            return perturb_parts(drawn, classifier, batch.images, batch.labels), CacheStats.empty(batch.images)
        period = max(rule.max_age for rule in rules) + 1
        parts = list(batch_parts(perturbation, seeds, self._draws(batch.indices, epoch, period), step))
        again = (batch.indices[:, None] == batch.indices).tril(-1).any(1)  # drawn twice by a sampler
        own = ~batch.is_padding & ~again
        if self.owned is not None:
            own &= self.owned(batch.indices)
        self._create(parts)
        requested = [(self.caches[p.name], p.rows[own[p.rows]]) for p in parts if p.cache is not None]
        with classifier.frozen():
            result, stats = _cached(requested, classifier, batch, epoch)
            missed = [~stats.hits[part.rows] for part in parts]
            parts = [
                part._replace(rows=part.rows[rest], seeds=part.seeds[rest])
                for part, rest in zip(parts, missed, strict=True)
            ]
            result = perturb_parts(parts, classifier, batch.images, batch.labels, result)
            _store(requested, result, classifier, batch, epoch)
        return result, stats

    def _draws(self, indices: Tensor, epoch: int, period: int) -> Tensor:
        """Return seeds (B,) that stay the same for `period` epochs and change in an epoch of each image's own."""
        start = torch.full_like(indices, self.seed)
        phase = noise.fold(start, "phase", indices) % period
        return noise.fold(start, "parts", (epoch + phase) // period, indices)

    def _create(self, parts: Iterable[BatchPart]) -> None:
        for part in parts:
            if part.cache is not None and part.name not in self.caches:
                self.caches[part.name] = StoredSamples(part.cache, repr(part.perturbation))


def _cached(
    requested: list[tuple[StoredSamples, Tensor]], classifier: Classifier, batch: Batch, epoch: int
) -> tuple[Perturbed, CacheStats]:
    """Return the batch with usable cached samples in place; `requested` has the rows for each cache.

    The classifier is frozen.
    """
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
        correct = classifier.logits(samples).argmax(1) == batch.labels[at]
        stale = fooled & correct  # a sample that never fooled the network stays usable
        stats.stale[at], stats.hits[at], stats.ages[at] = stale, ~stale, ages * ~stale
        result = result.put(at[~stale], Perturbed.plain(samples[~stale]))
    return result, stats


def _store(
    requested: list[tuple[StoredSamples, Tensor]], result: Perturbed, classifier: Classifier, batch: Batch, epoch: int
) -> None:
    """Store the new samples; the classifier is frozen."""
    new = result.attempted & (result.images != batch.images).flatten(1).any(1)
    every = torch.cat([rows for _, rows in requested])
    every = every[new[every]]
    fooled = torch.zeros_like(new)
    if len(every):
        fooled[every] = classifier.logits(result.images[every]).argmax(1) != batch.labels[every]
    for cache, rows in requested:
        fresh = rows[new[rows]]
        cache.store(batch.indices[fresh], result.images[fresh], fooled[fresh], epoch)
