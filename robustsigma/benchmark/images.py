"""Which images are judged: the first in a random order that every model classifies right."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.loading import take, take_masks
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail

_BLOCK = 64


class Judged(NamedTuple):
    """The images of a benchmark.

    Attributes:
        indices: of the images in their split, increasing.
        labels: int64 (n,).
        tried: images that were looked at.
        right: share of those that each model classifies right, by name, as 0 and 1 (tried,).
    """

    indices: list[int]
    labels: Tensor
    tried: int
    right: dict[str, list[float]]


def judged(dataset: Dataset[Any], models: dict[str, Classifier], count: int, seed: int) -> Judged:
    """Return `count` images that every model gets right, or all there are.

    Raises:
        ValueError: not one.
    """
    total = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    right: dict[str, list[float]] = {name: [] for name in models}
    found: dict[int, int] = {}
    tried = 0
    for start in range(0, total, _BLOCK):
        part = order[start : start + _BLOCK]
        x, y = take(dataset, part)
        all_right = torch.ones(len(part), dtype=torch.bool)
        for name, classifier in models.items():
            verdict = _predictions(classifier, x) == y
            right[name] += verdict.double().tolist()
            all_right &= verdict
        tried += len(part)
        found |= {index: int(label) for index, label, good in zip(part, y, all_right, strict=True) if good}
        if len(found) >= count:
            break
    if not found:
        raise fail("models", "an image that all of them classify right", f"none among {total}")
    chosen = sorted(list(found)[:count])
    return Judged(chosen, torch.tensor([found[index] for index in chosen]), tried, right)


def _predictions(classifier: Classifier, x: Tensor) -> Tensor:
    with classifier.frozen():
        return classifier.logits(classifier.admit(x.to(classifier.mean.device))).argmax(1).cpu()


def shown(labels: Tensor, most: int) -> list[int]:
    """Return the places of at most so many images: the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for place, label in enumerate(labels.tolist()):
        turns.append((seen[label], label, place))
        seen[label] += 1
    return [place for _, _, place in sorted(turns)][:most]


def has_masks(dataset: Dataset[Any]) -> bool:
    """Return whether somebody marked the objects."""
    return take_masks(dataset, [0]) is not None
