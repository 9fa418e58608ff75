"""Checks and variants of perturbations: ramped, without caches, divided into parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import (
    FGSM,
    NFGSM,
    PGD,
    Identity,
    Mixture,
    Perturbation,
    Perturbed,
    SigmaSample,
)
from robustsigma.engine.perturbations.mixture import part_seeds
from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.engine.validation import Settings, fail, instance, integer, mapping


def check_conditions(given: Any, name: str = "conditions") -> dict[str, Perturbation]:
    """Return perturbations by name; raise ValueError for anything else."""
    mapping(name, given)
    for key, condition in given.items():
        instance(f"{name}[{key!r}]", condition, Perturbation)
    return dict(given)


def evaluation_conditions(name: str, given: Mapping[str, Perturbation] | None) -> dict[str, Perturbation]:
    """Return one or more perturbations by name, without sample caches; the clean images for None."""
    found = check_conditions({"clean": Identity()} if given is None else given, name)
    if not found:
        raise fail(name, "at least one condition", "none")
    return {key: without_cache(perturbation) for key, perturbation in found.items()}


def map_parts(perturbation: Perturbation, change: Callable[[Perturbation], Perturbation]) -> Perturbation:
    """Return a perturbation with each part that is no mixture changed, at any depth of mixtures."""
    if isinstance(perturbation, Mixture):
        parts = [replace(part, perturbation=map_parts(part.perturbation, change)) for part in perturbation.parts]
        return replace(perturbation, parts=parts)
    return change(perturbation)


def without_cache(perturbation: Perturbation) -> Perturbation:
    """Return the perturbation without sample caches, so that each sample is recomputed."""
    return map_parts(perturbation, lambda p: replace(p, cache=None) if isinstance(p, SigmaSample) else p)


def has_cache(perturbation: Perturbation | None) -> bool:
    """Return whether a perturbation has a `SigmaSample` with a sample cache in it."""
    return perturbation is not None and without_cache(perturbation) != perturbation


def has_single_step(perturbation: Perturbation) -> bool:
    """Return whether a perturbation has an FGSM or NFGSM in it, to which a training may overfit."""
    return map_parts(perturbation, lambda p: Identity() if isinstance(p, (FGSM, NFGSM)) else p) != perturbation


def pgd_probe(perturbation: Perturbation, steps: int) -> PGD | None:
    """Return PGD in the ball of the first FGSM, NFGSM or PGD in a perturbation, or None if there is none."""
    if isinstance(perturbation, Mixture):
        probes = (pgd_probe(part.perturbation, steps) for part in perturbation.parts)
        return next((probe for probe in probes if probe is not None), None)
    if isinstance(perturbation, PGD):
        return PGD(perturbation.eps, norm=perturbation.norm, steps=steps)
    return PGD(perturbation.eps, steps=steps) if isinstance(perturbation, (FGSM, NFGSM)) else None


_ROOTS = (5, 2, 3, 7)


class BatchPart(NamedTuple):
    """A perturbation that is no mixture, and the images of a batch that it applies to.

    Attributes:
        name: its place in the training perturbation.
        perturbation: the perturbation, without its cache.
        rows: int64 (n,), positions of the images in the batch.
        seeds: int64 (n,), seeds of these images.
        cache: settings of its sample cache, if it has one.
    """

    name: str
    perturbation: Perturbation
    rows: Tensor
    seeds: Tensor
    cache: SampleCache | None = None


def batch_parts(
    perturbation: Perturbation, seeds: Tensor, draws: Tensor, step: int | None = None, name: str = "0"
) -> Iterator[BatchPart]:
    """Yield the parts of a perturbation, at any depth of mixtures, with the images that each applies to.

    Args:
        perturbation: training perturbation.
        seeds: int64 (B,), per image.
        draws: int64 (B,), seeds that decide which image gets which part.
        step: number of the batch, which fixes the number of images of each part: a share of the batch rounded up or
            down, so that the shares hold over the batches, and all processes have equal work. With None each image
            draws for itself. With `seeds` as `draws`, the parts then do what the perturbation does.
        name: name of the whole.
    """
    # Multiples of an irrational number spread evenly over [0, 1). Mixtures inside each other take different ones.
    offset = None if step is None else step * _ROOTS[name.count(".") % len(_ROOTS)] ** 0.5 % 1
    if isinstance(perturbation, Mixture):
        for number, (rows, keys) in enumerate(perturbation.assigned(seeds, draws, offset)):
            part = perturbation.parts[number].perturbation
            for inner in batch_parts(part, keys, part_seeds(draws[rows], number), step, f"{name}.{number}"):
                yield inner._replace(rows=rows[inner.rows])
    elif isinstance(perturbation, SigmaSample):
        rows = perturbation.walked(draws, offset)
        yield BatchPart(name, replace(perturbation, fraction=1.0, cache=None), rows, seeds[rows], perturbation.cache)
    else:
        yield BatchPart(name, perturbation, torch.arange(len(seeds), device=seeds.device), seeds)


def batch_number(trainer: Any) -> int:
    """Return the number of batches that the training has finished, over epochs and also after a resume.

    Unlike `trainer.global_step`, it counts each of the batches whose gradients an optimizer step accumulates.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.completed)


def perturb_parts(
    parts: Iterable[BatchPart], classifier: Classifier, images: Tensor, labels: Tensor, made: Perturbed | None = None
) -> Perturbed:
    """Return a batch with each part perturbed against a classifier, whose weights are gathered once for all parts.

    Args:
        parts: what to perturb.
        classifier: network to perturb against.
        images: float (B, C, H, W), clean.
        labels: int64 (B,).
        made: batch whose other images are kept; None keeps the clean ones.
    """
    made = Perturbed.plain(images) if made is None else made
    with classifier.frozen():
        for part in parts:
            if len(part.rows):
                x, y = images[part.rows], labels[part.rows]
                made = made.put(part.rows, part.perturbation(classifier, x, y, seed=part.seeds, return_info="search"))
    return made


@dataclass(frozen=True)
class Ramp(Settings):
    """Linear growth of a training perturbation over the first epochs.

    In epoch e, counted from 0, of n epochs a value is (e + 1) / n of its full size, at most 1.

    Args:
        eps: number of epochs until FGSM, NFGSM and PGD, also inside mixtures, have their full radius; PGD's step size
            grows with it where it is given. None keeps the radius.
        share: number of epochs until each part of the `Mixture` has its full share; None keeps the shares.

    Example:
        >>> Ramp(eps=4).at(FGSM(0.04), epoch=0).eps
        0.01
    """

    eps: int | None = None
    share: int | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "share"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)

    def check(self, perturbation: Perturbation | None) -> None:
        """Check that a perturbation has what should grow.

        Raises:
            ValueError: it has not.
        """
        if self.share is not None and not isinstance(perturbation, Mixture):
            raise fail("train_perturbation", "a Mixture, whose shares can grow", repr(perturbation))
        if self.eps is not None and (perturbation is None or _weaker(perturbation, 0.5) == perturbation):
            raise fail("train_perturbation", "FGSM, NFGSM or PGD in it, whose eps can grow", repr(perturbation))

    def at(self, perturbation: Perturbation, epoch: int) -> Perturbation:
        """Return the perturbation as it is in an epoch."""
        if self.share is not None and epoch + 1 < self.share:
            assert isinstance(perturbation, Mixture)
            factor = (epoch + 1) / self.share
            perturbation = Mixture([replace(part, share=factor * part.share) for part in perturbation.parts])
        if self.eps is not None and epoch + 1 < self.eps:
            perturbation = _weaker(perturbation, (epoch + 1) / self.eps)
        return perturbation


def _weaker(perturbation: Perturbation, factor: float) -> Perturbation:
    def weaken(part: Perturbation) -> Perturbation:
        if isinstance(part, PGD) and part.step_size is not None:
            part = replace(part, step_size=factor * part.step_size)
        return replace(part, eps=factor * part.eps) if isinstance(part, (FGSM, NFGSM, PGD)) else part

    return map_parts(perturbation, weaken)
