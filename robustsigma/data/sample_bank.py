"""The bank of SIGMA samples: those made in earlier epochs, used again while they still fool the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Mixture, Perturbation, Perturbed, SigmaSample
from robustsigma.engine.perturbations.mixture import part_seeds
from robustsigma.engine.perturbations.sigma_sample import Bank

_NONE = -1
_TYPES = {"uint8": torch.uint8, "float16": torch.float16}


class Withdrawal(NamedTuple):
    """What the bank gave for a batch. B images.

    Attributes:
        served: (B,) bool, True where the image is a sample from the bank.
        wanted: images that were to become samples of a `SigmaSample` with a bank, int64 ().
        missing: wanted ones of which the bank had no sample, int64 ().
        expired: those whose sample was too old, int64 ().
        relearnt: those whose sample the network classifies right by now, int64 ().
        ages: sum of the ages of the served samples, in epochs, int64 ().
    """

    served: Tensor
    wanted: Tensor
    missing: Tensor
    expired: Tensor
    relearnt: Tensor
    ages: Tensor

    @staticmethod
    def empty(images: Tensor) -> Withdrawal:
        """Return that of a batch without wanted samples."""
        no = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        zero = no.sum()
        return Withdrawal(no, zero, zero, zero, zero, zero)

    @property
    def totals(self) -> Tensor:
        """Wanted, served, expired and relearnt ones, and the sum of ages: int64 (5,)."""
        return torch.stack([self.wanted, self.served.sum(), self.expired, self.relearnt, self.ages])


class SampleBank:
    """The last sample of each image, with the epoch in which it was made.

    Memory: C·H·W bytes an image in uint8 (3 kB at 3x32x32, 12 kB at 3x64x64, 147 kB at 3x224x224), twice that in
    float16, and 24 bytes; on the device of the batches. Without a limit it grows with the images that were banked.

    Args:
        rule: how long a sample is kept, and how.
    """

    def __init__(self, rule: Bank) -> None:
        self.rule = rule
        self.slots = torch.full((0,), _NONE)  # by index in the dataset
        self.owners = torch.zeros(0, dtype=torch.int64)  # by slot, as the next two
        self.made = torch.zeros(0, dtype=torch.int64)
        self.images = torch.zeros(0, dtype=_TYPES[rule.dtype])
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def state_dict(self) -> dict[str, Tensor]:
        """Return the samples, on the CPU."""
        kept = {name: getattr(self, name)[: self.count] for name in ("owners", "made", "images")}
        return {name: tensor.cpu().clone() for name, tensor in kept.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self.owners, self.made, self.images = (state[name].clone() for name in ("owners", "made", "images"))
        self.count = len(self.owners)
        self.slots = torch.full((int(self.owners.max()) + 1 if self.count else 0,), _NONE)
        self.slots[self.owners] = torch.arange(self.count)

    def recall(self, indices: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return which of some images have a sample and their age in epochs, (n,), and the samples of those that do.

        Samples are float, (k, C, H, W), in the order of the images that have one.
        """
        self._to(indices.device)
        known = indices < len(self.slots)
        slots = torch.full_like(indices, _NONE)
        slots[known] = self.slots[indices[known]]
        has = slots != _NONE
        ages = torch.zeros_like(indices)
        ages[has] = epoch - self.made[slots[has]]
        images = self.images[slots[has]].float()
        return has, ages, images / 255 if self.rule.dtype == "uint8" else images

    def store(self, indices: Tensor, images: Tensor, epoch: int) -> None:
        """Keep samples (n, C, H, W) of n different images; the oldest of others make room where a limit is reached."""
        most = self.rule.most
        if most is not None:
            indices, images = indices[:most], images[:most]
        if len(indices) == 0:
            return
        self._to(indices.device)
        if int(indices.max()) >= len(self.slots):
            self.slots = _grown(self.slots, int(indices.max()) + 1, _NONE)
        new = indices[self.slots[indices] == _NONE]
        self._make_room(new, indices, images)
        slots = self.slots[indices]
        self.made[slots] = epoch
        whole = (images * 255).round() if self.rule.dtype == "uint8" else images
        self.images[slots] = whole.to(self.images.dtype)

    def _make_room(self, new: Tensor, current: Tensor, images: Tensor) -> None:
        most = self.rule.most
        fresh = len(new) if most is None else min(len(new), most - self.count)
        size = self.count + fresh
        if size > len(self.owners):
            room = max(size, 2 * len(self.owners))
            room = room if most is None else min(room, most)
            self.owners, self.made = _grown(self.owners, room), _grown(self.made, room)
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
        for name in ("slots", "owners", "made", "images"):
            setattr(self, name, getattr(self, name).to(device))


def _grown(tensor: Tensor, size: int, fill: int = 0) -> Tensor:
    """Return the tensor with more rows."""
    return torch.cat([tensor, tensor.new_full((size - len(tensor), *tensor.shape[1:]), fill)])


class Leaf(NamedTuple):
    """A perturbation that is no mixture, and the images of a batch that it gets.

    Attributes:
        name: its place in the training perturbation.
        perturbation: itself.
        rows: int64 (n,).
        seeds: of these images, int64 (n,).
    """

    name: str
    perturbation: Perturbation
    rows: Tensor
    seeds: Tensor

    @property
    def rule(self) -> Bank | None:
        """How its samples are kept, if they are."""
        return self.perturbation.bank if isinstance(self.perturbation, SigmaSample) else None


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
    elif isinstance(perturbation, SigmaSample) and perturbation.bank is not None:
        rows = perturbation.walked(draws)
        yield Leaf(name, replace(perturbation, fraction=1.0), rows, seeds[rows])
    else:
        yield Leaf(name, perturbation, torch.arange(len(seeds), device=seeds.device), seeds)


class Banks:
    """The banks of a training: one for each `SigmaSample` with a bank in the training perturbation.

    An image is served from the bank where its perturbation would make a SIGMA sample and a recent one still fools the
    network; all others are made as without a bank, each kind in one call.

    Beside a bank, an image keeps its part of the mixture for `max_age` + 1 epochs, counted from an epoch of its own:
    were parts drawn anew in each epoch, an image would seldom be due for a second sample before the first is too old.
    The shares, in expectation, are the same, and so is the noise, which is new in each epoch.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.banks: dict[str, SampleBank] = {}
        self._loaded: dict[str, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the samples of all banks."""
        return {name: bank.state_dict() for name, bank in self.banks.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; a bank that the perturbation does not have any more is forgotten."""
        self.banks, self._loaded = {}, dict(state)

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
    ) -> tuple[Perturbed, Withdrawal]:
        """Perturb a batch, with samples from the banks; see `Perturbation.apply`.

        Args:
            perturbation: of the batch.
            classifier: the network to perturb against.
            images: float (B, C, H, W) in [0, 1].
            labels: int64 (B,).
            seeds: int64 (B,), per image.
            indices: int64 (B,), by which samples are kept.
            epoch: now.

        Returns:
            The perturbed batch and what came from the banks; a served image counts as not searched.
        """
        found = list(leaves(perturbation, seeds, seeds))
        ages = [leaf.rule.max_age for leaf in found if leaf.rule is not None]
        if not ages:
            return perturbation.apply(classifier, images, labels, seed=seeds), Withdrawal.empty(images)
        found = list(leaves(perturbation, seeds, self._draws(indices, epoch, max(ages) + 1)))
        banked = [(self._bank(leaf.name, leaf.rule), leaf.rows) for leaf in found if leaf.rule is not None]
        result, withdrawal = self._withdraw(banked, classifier, images, labels, indices, epoch)
        for leaf in found:
            left = ~withdrawal.served[leaf.rows]
            rows = leaf.rows[left]
            if len(rows):
                made = leaf.perturbation.apply(classifier, images[rows], labels[rows], seed=leaf.seeds[left])
                result = result.put(rows, made)
        for bank, rows in banked:
            fresh = rows[result.searched[rows] & (result.images[rows] != images[rows]).flatten(1).any(1)]
            bank.store(indices[fresh], result.images[fresh], epoch)
        return result, withdrawal

    def _draws(self, indices: Tensor, epoch: int, period: int) -> Tensor:
        """Return seeds that stay the same for so many epochs, and change in an epoch of each image's own, (B,)."""
        start = torch.full_like(indices, self.seed)
        phase = noise.fold(start, "phase", indices) % period
        return noise.fold(start, "parts", (epoch + phase) // period, indices)

    def _withdraw(
        self,
        found: list[tuple[SampleBank, Tensor]],
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        epoch: int,
    ) -> tuple[Perturbed, Withdrawal]:
        """Return the batch with the banks' sound samples in place, and the account."""
        empty = Withdrawal.empty(images)
        rows, ages, samples = [], [], []
        missing, expired = empty.missing, empty.expired
        for bank, wanted in found:
            has, age, kept = bank.recall(indices[wanted], epoch)
            young = age[has] <= bank.rule.max_age
            rows.append(wanted[has][young])
            ages.append(age[has][young])
            samples.append(kept[young])
            missing, expired = missing + (~has).sum(), expired + (~young).sum()
        at, age = torch.cat(rows), torch.cat(ages)
        served, result, relearnt = empty.served, Perturbed.plain(images), empty.relearnt
        if len(at):
            candidates = torch.cat([s for s in samples if len(s)])
            with classifier.frozen():
                wrong = classifier.logits(candidates).argmax(1) != labels[at]
            at, age = at[wrong], age[wrong]
            relearnt = (~wrong).sum()
            served = served.index_fill(0, at, True)
            result = result.put(at, Perturbed.plain(candidates[wrong]))
        asked = empty.wanted + sum(len(wanted) for _, wanted in found)
        return result, Withdrawal(served, asked, missing, expired, relearnt, age.sum())

    def _bank(self, name: str, rule: Bank) -> SampleBank:
        if name not in self.banks:
            self.banks[name] = SampleBank(rule)
            if name in self._loaded:
                self.banks[name].load_state_dict(self._loaded.pop(name))
        return self.banks[name]
