"""Batches in which SIGMA samples of earlier epochs are used again, until too old or until the network knows them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustsigma.data.gathering import Share
from robustsigma.data.sample_bank import StoredSamples
from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Mixture, Perturbation, Perturbed, SigmaSample
from robustsigma.engine.perturbations.mixture import part_seeds
from robustsigma.engine.perturbations.path_samples import SampleCache


class CacheStats(NamedTuple):
    """What the bank gave for a batch. B images.

    Attributes:
        served: (B,) bool, True where the image is a sample from the bank.
        wanted: images that were to become samples of a `SigmaSample` with a bank, int64 ().
        missing: wanted ones of which the bank had no sample, int64 ().
        expired: those whose sample was too old, int64 ().
        stale: those whose sample had fooled the network, which classifies it right by now, int64 ().
        ages: sum of the ages of the served samples, in epochs, int64 ().
    """

    served: Tensor
    wanted: Tensor
    missing: Tensor
    expired: Tensor
    stale: Tensor
    ages: Tensor

    @staticmethod
    def empty(images: Tensor) -> CacheStats:
        """Return that of a batch without wanted samples."""
        no = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        zero = no.sum()
        return CacheStats(no, zero, zero, zero, zero, zero)

    @property
    def totals(self) -> Tensor:
        """Wanted, served, expired and stale ones, and the sum of ages: int64 (5,)."""
        return torch.stack([self.wanted, self.served.sum(), self.expired, self.stale, self.ages])


class Leaf(NamedTuple):
    """A perturbation that is no mixture, and the images of a batch that it gets.

    Attributes:
        name: its place in the training perturbation.
        perturbation: itself, without its bank.
        rows: int64 (n,).
        seeds: of these images, int64 (n,).
        rule: how its samples are kept, if they are.
    """

    name: str
    perturbation: Perturbation
    rows: Tensor
    seeds: Tensor
    rule: SampleCache | None = None


def unbanked(perturbation: Perturbation) -> Perturbation:
    """Return the perturbation with each sample made anew, where nobody keeps any."""
    if isinstance(perturbation, Mixture):
        parts = [replace(part, perturbation=unbanked(part.perturbation)) for part in perturbation.parts]
        return replace(perturbation, parts=parts)
    return replace(perturbation, cache=None) if isinstance(perturbation, SigmaSample) else perturbation


def leaves(perturbation: Perturbation, seeds: Tensor, draws: Tensor, name: str = "0") -> Iterator[Leaf]:
    """Yield the parts of a perturbation, those of mixtures at any depth, with the images that each gets.

    Args:
        perturbation: of the batch.
        seeds: int64 (B,), per image.
        draws: int64 (B,), by which it is drawn which image gets which part. With `seeds` here, the leaves together do
            what the perturbation does.
        name: of the whole.
    """
    if isinstance(perturbation, Mixture):
        for number, (rows, keys) in enumerate(perturbation.assigned(seeds, draws)):
            part = perturbation.parts[number].perturbation
            for leaf in leaves(part, keys, part_seeds(draws[rows], number), f"{name}.{number}"):
                yield leaf._replace(rows=rows[leaf.rows])
    elif isinstance(perturbation, SigmaSample) and perturbation.cache is not None:
        rows = perturbation.walked(draws)
        yield Leaf(name, replace(perturbation, fraction=1.0, cache=None), rows, seeds[rows], perturbation.cache)
    else:
        yield Leaf(name, perturbation, torch.arange(len(seeds), device=seeds.device), seeds)


class SampleCaches:
    """The banks of a training: one for each `SigmaSample` with a bank in the training perturbation.

    An image is served from the bank where its perturbation would make a SIGMA sample and a recent one still fools the
    network, or never did, its walk having been too short; all others are made as without a bank, each kind in one call.

    Beside a bank, an image keeps its part of the mixture for `max_age` + 1 epochs, counted from an epoch of its own:
    were parts drawn anew in each epoch, an image would seldom be due for a second sample before the first is too old.
    The shares, in expectation, are the same, and so is the noise, which is new in each epoch.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.banks: dict[str, StoredSamples] = {}
        self.made_by: dict[str, str] = {}  # which perturbation made a bank's samples, by the name of the bank
        self._loaded: dict[str, dict[str, Tensor]] = {}
        self._loaded_by: dict[str, str] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the samples of all banks."""
        return {name: bank.state_dict() for name, bank in self.banks.items()}

    def load_state_dict(self, state: dict[str, Any], made_by: Mapping[str, str] | None = None) -> None:
        """Take them back; a bank that the perturbation does not have any more is forgotten.

        Args:
            state: what `state_dict` returned.
            made_by: what `made_by` was then: samples of another perturbation are dropped, with a warning.
        """
        self.banks, self._loaded, self._loaded_by = {}, dict(state), dict(made_by or {})

    def apply(
        self,
        perturbation: Perturbation,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        *,
        seeds: Tensor,
        indices: Tensor,
        epoch: int,
        share: Share | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Perturbed, CacheStats]:
        """Perturb a batch, with samples from the banks; see `Perturbation.apply`.

        Args:
            perturbation: of the batch.
            classifier: the network to perturb against.
            images: float (B, C, H, W) in [0, 1].
            labels: int64 (B,).
            seeds: int64 (B,), per image.
            indices: int64 (B,), by which samples are kept.
            epoch: now.
            share: which part of a batch of several processes this is; the samples of all are then kept by each.
            counted: bool (B,), False where an image only fills up a process's share: it is made, but not asked for from
                a bank and not kept; None if all count.

        Returns:
            The perturbed batch and what came from the banks; a served image counts as not searched.
        """
        found = list(leaves(perturbation, seeds, seeds))
        ages = [leaf.rule.max_age for leaf in found if leaf.rule is not None]
        if not ages:
            return perturbation(classifier, images, labels, seed=seeds, return_info=True), CacheStats.empty(images)
        found = list(leaves(perturbation, seeds, self._draws(indices, epoch, max(ages) + 1)))
        own = torch.ones_like(indices, dtype=torch.bool) if counted is None else counted
        banked = [(self._bank(f, f.rule), f.rows[own[f.rows]]) for f in found if f.rule is not None]
        result, cache_stats = self._withdraw(banked, classifier, images, labels, indices, epoch)
        for leaf in found:
            left = ~cache_stats.served[leaf.rows]
            rows = leaf.rows[left]
            if len(rows):
                made = leaf.perturbation(
                    classifier, images[rows], labels[rows], seed=leaf.seeds[left], return_info=True
                )
                result = result.put(rows, made)
        self._store(banked, result, classifier, images, labels, indices, epoch, share or Share())
        return result, cache_stats

    @staticmethod
    def _store(
        banked: list[tuple[StoredSamples, Tensor]],
        result: Perturbed,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        epoch: int,
        share: Share,
    ) -> None:
        """Keep the samples that were made, by all processes."""
        made = result.attempted & (result.images != images).flatten(1).any(1)
        every = torch.cat([rows for _, rows in banked])
        every = every[made[every]]
        fooled = torch.zeros_like(made)
        if len(every):
            with classifier.frozen():
                fooled[every] = classifier.logits(result.images[every]).argmax(1) != labels[every]
        for bank, rows in banked:
            fresh = rows[made[rows]]
            whose, packed, fool = share.gather(fresh, indices[fresh], bank.packed(result.images[fresh]), fooled[fresh])
            bank.store(whose, bank.unpacked(packed), fool, epoch)

    def _draws(self, indices: Tensor, epoch: int, period: int) -> Tensor:
        """Return seeds that stay the same for so many epochs, and change in an epoch of each image's own, (B,)."""
        start = torch.full_like(indices, self.seed)
        phase = noise.fold(start, "phase", indices) % period
        return noise.fold(start, "parts", (epoch + phase) // period, indices)

    def _withdraw(
        self,
        found: list[tuple[StoredSamples, Tensor]],
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        epoch: int,
    ) -> tuple[Perturbed, CacheStats]:
        """Return the batch with the banks' sound samples in place, and the account."""
        empty = CacheStats.empty(images)
        missing, expired = empty.missing, empty.expired
        parts: list[tuple[Tensor, ...]] = []
        for bank, wanted in found:
            kept = bank.recall(indices[wanted], epoch)
            young = kept.ages <= bank.rule.max_age
            missing, expired = missing + (~kept.has).sum(), expired + (~young).sum()
            if young.any():
                parts.append((wanted[kept.has][young], *(column[young] for column in kept[1:])))
        served, result, stale, ages = empty.served, Perturbed.plain(images), empty.stale, empty.ages
        if parts:
            at, age, fooled, samples = (torch.cat(column) for column in zip(*parts, strict=True))
            with classifier.frozen():
                right = classifier.logits(samples).argmax(1) == labels[at]
            # One that never fooled the network, as its walk was too short, has nothing to relearn.
            good = ~(fooled & right)
            stale, ages = (~good).sum(), age[good].sum()
            served = served.index_fill(0, at[good], True)
            result = result.put(at[good], Perturbed.plain(samples[good]))
        asked = empty.wanted + sum(len(wanted) for _, wanted in found)
        return result, CacheStats(served, asked, missing, expired, stale, ages)

    def _bank(self, leaf: Leaf, rule: SampleCache) -> StoredSamples:
        name = leaf.name
        if name not in self.banks:
            self.banks[name], self.made_by[name] = StoredSamples(rule), repr(leaf.perturbation)
            if self._loaded_by.get(name, self.made_by[name]) != self.made_by[name]:
                told = "is of another perturbation; it is dropped"
                warnings.warn(f"ckpt_path: the checkpoint's bank of {leaf.perturbation} {told}", stacklevel=2)
            elif name in self._loaded:
                self.banks[name].load_state_dict(self._loaded.pop(name))
        return self.banks[name]
