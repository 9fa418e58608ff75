"""The images of a benchmark: the first in a random order that every model classifies correctly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.dataset_spec import DatasetSpec, adapt_and_check
from robustsigma.data.loading import load_batch
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.validation import fail
from robustsigma.models import ModelCard

_BLOCK = 64


class EvaluatedImages(NamedTuple):
    """The images of a benchmark.

    Attributes:
        indices: indices of the images in their split, increasing.
        labels: int64 (n,); the first one if several are correct.
        targets: predicted class by model name, int64 (n,): a correct one, and the one to explain.
        tried: number of images that the models classified.
        correct: by model name, 1.0 or 0.0 for each of these images.
    """

    indices: list[int]
    labels: Tensor
    targets: dict[str, Tensor]
    tried: int
    correct: dict[str, list[float]]


def find_images(dataset: Dataset[Any], models: dict[str, Classifier], count: int, seed: int) -> EvaluatedImages:
    """Return `count` images that every model classifies correctly, or all there are.

    An image of a dataset with a method `correct_labels(index)` has several correct classes.

    Raises:
        ValueError: there is none.
    """
    total = len(dataset)  # type: ignore[arg-type]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    correct_labels = getattr(dataset, "correct_labels", None)
    correct: dict[str, list[float]] = {name: [] for name in models}
    found: dict[int, tuple[int, dict[str, int]]] = {}
    tried = 0
    for start in range(0, total, _BLOCK):
        block = order[start : start + _BLOCK]
        images, labels = load_batch(dataset, block)
        allowed = [correct_labels(i) if correct_labels else (int(y),) for i, y in zip(block, labels, strict=True)]
        predicted = {name: _predictions(classifier, images).tolist() for name, classifier in models.items()}
        for name, classes in predicted.items():
            correct[name] += [float(each in row) for each, row in zip(classes, allowed, strict=True)]
        for place, index in enumerate(block):
            if all(flags[tried + place] for flags in correct.values()):
                found[index] = int(labels[place]), {name: classes[place] for name, classes in predicted.items()}
        tried += len(block)
        if len(found) >= count:
            break
    if not found:
        raise fail("models", "an image that all of them classify correctly", f"none among {total}")
    chosen = sorted(list(found)[:count])
    labels = torch.tensor([found[index][0] for index in chosen])
    targets = {name: torch.tensor([found[index][1][name] for index in chosen]) for name in models}
    return EvaluatedImages(chosen, labels, targets, tried, correct)


def _predictions(classifier: Classifier, images: Tensor) -> Tensor:
    with classifier.frozen():
        return classifier.logits(classifier.prepare_input(images.to(classifier.mean.device))).argmax(1).cpu()


def adapt_to_models(dataset: DatasetSpec, cards: Mapping[str, ModelCard]) -> DatasetSpec:
    """Return a dataset whose classes and images fit all models.

    Args:
        dataset: the dataset.
        cards: cards of the models, by name; without any, the dataset stays as it is.

    Raises:
        ValueError: naming the first model of other images or classes; or the models need different crops and the
            dataset does not name one.
    """
    found = dataset
    for name, card in cards.items():
        found = _adapted(found, card, f"models.{name}")
    for name, card in cards.items():
        own = _adapted(dataset, card, f"models.{name}")
        if own.geometry != found.geometry:
            told = f"images of {found.geometry} as the other models, or a `geometry` of the dataset that is for all"
            raise fail(f"models.{name}", told, own.geometry)
    return found


def _adapted(dataset: DatasetSpec, card: ModelCard, name: str) -> DatasetSpec:
    """Return a dataset as a model takes it; the error of another size names the setting."""
    try:
        return adapt_and_check(dataset, card.classes, card.shape, card.geometry, name)
    except ValueError as error:
        size = dataset.shape[1]
        if card.geometry is None or card.geometry.size == size:
            raise
        hint = f"if the network takes images of {size} pixels, add geometry: {{size: {size}}} to {name}"
        raise ValueError(f"{error}; {hint}") from error


def gallery_places(labels: Tensor, most: int) -> list[int]:
    """Return the places of at most so many images: the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for place, label in enumerate(labels.tolist()):
        turns.append((seen[label], label, place))
        seen[label] += 1
    return [place for _, _, place in sorted(turns)][:most]
