"""Which images are judged: the first in a random order that every model classifies right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.dataset_spec import DatasetSpec, adapt_to_model
from robustsigma.data.loading import load_batch, load_masks
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.models import ModelCard

_BLOCK = 64


class Judged(NamedTuple):
    """The images of a benchmark.

    Attributes:
        indices: of the images in their split, increasing.
        labels: int64 (n,); the first where several are right.
        targets: the class that each model says, by name, int64 (n,): a right one, and the one to explain.
        tried: images that were looked at.
        right: share of those that each model classifies right, by name, as 0 and 1 (tried,).
    """

    indices: list[int]
    labels: Tensor
    targets: dict[str, Tensor]
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
    found: dict[int, tuple[int, dict[str, int]]] = {}
    tried = 0
    for start in range(0, total, _BLOCK):
        part = order[start : start + _BLOCK]
        x, y = load_batch(dataset, part)
        allowed = _right_classes(dataset, part, y)
        said = {name: _predictions(classifier, x).tolist() for name, classifier in models.items()}
        verdicts = {name: [each in row for each, row in zip(said[name], allowed, strict=True)] for name in models}
        for name, verdict in verdicts.items():
            right[name] += map(float, verdict)
        tried += len(part)
        for place, index in enumerate(part):
            if all(verdict[place] for verdict in verdicts.values()):
                found[index] = int(y[place]), {name: said[name][place] for name in models}
        if len(found) >= count:
            break
    if not found:
        raise fail("models", "an image that all of them classify right", f"none among {total}")
    chosen = sorted(list(found)[:count])
    labels = torch.tensor([found[index][0] for index in chosen])
    targets = {name: torch.tensor([found[index][1][name] for index in chosen]) for name in models}
    return Judged(chosen, labels, targets, tried, right)


def adapt_to_models(source: DatasetSpec, cards: Mapping[str, ModelCard]) -> DatasetSpec:
    """Return a dataset as all of some models take it.

    Args:
        source: the dataset.
        cards: of the models, by name; without any, the dataset is as it is.

    Raises:
        ValueError: naming the first model of other images or classes, or models that want their images otherwise
            cropped where the dataset does not say how.
    """
    found = source
    for name, card in cards.items():
        found = adapt_to_model(found, card.classes, card.shape, card.geometry, f"models.{name}")
    for name, card in cards.items():
        own = adapt_to_model(source, card.classes, card.shape, card.geometry, f"models.{name}")
        if own.geometry != found.geometry:
            told = f"images of {found.geometry} as the other models, or a `geometry` of the source that is for all"
            raise fail(f"models.{name}", told, own.geometry)
    return found


def _right_classes(dataset: Dataset[Any], indices: list[int], labels: Tensor) -> list[Collection[int]]:
    """Return every class that each image may be called by."""
    correct_labels = getattr(dataset, "correct_labels", None)
    if correct_labels is None:
        return [(int(label),) for label in labels]
    return [correct_labels(index) for index in indices]


def _predictions(classifier: Classifier, x: Tensor) -> Tensor:
    with classifier.frozen():
        return classifier.logits(classifier.prepare_input(x.to(classifier.mean.device))).argmax(1).cpu()


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
    return load_masks(dataset, [0]) is not None
