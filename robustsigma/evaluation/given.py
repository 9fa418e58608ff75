"""What settings leave to the network that they are given, and what no run of them could do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from robustsigma.data.dataset_spec import DatasetSpec, adapt_to_model
from robustsigma.engine.validation import fail
from robustsigma.evaluation.settings import Evaluation
from robustsigma.models import Architecture, ModelCard
from robustsigma.models.model_files import read_card
from robustsigma.models.published_weights import PUBLISHED, published, statistics
from robustsigma.models.weight_files import stored_statistics

_WEIGHTS = "architecture.weights"
MEAN, STD = (0.5,), (0.25,)  # of a network that is trained here


def resolve_settings(settings: Evaluation) -> Evaluation:
    """Return settings that leave nothing open, or refuse them before anything is trained or attacked.

    Normalization is what a network was trained with, and where it is taken as it is (`training.epochs: 0`) the labels
    are its logits. Settings that are complete come back as they are.

    Args:
        settings: of an evaluation.

    Raises:
        ValueError: a training that the dataset has no images for, a network of other classes, or one of which nobody
            says how its images were normalized.
    """
    _check_training_images(settings)
    card = _card(settings.architecture)
    mean, std = _normalization(settings, card)
    return dataclasses.replace(settings, mean=mean, std=std, source=_labeled(settings, card))


def _check_training_images(settings: Evaluation) -> None:
    again = settings.retraining
    asked = {
        "training.epochs": settings.training.epochs,
        "retraining.retrain": ", ".join(again.retrain),
        "retraining.on_the_fly": ", ".join(again.on_the_fly),
        "sweep": "" if settings.sweep is None else "one",
    }
    if not any(asked.values()) or "train" in settings.source.splits:
        return
    name = next(name for name, value in asked.items() if value)
    nothing = {"training.epochs": "0", "sweep": "none"}.get(name, "no regime ({})")
    raise fail(name, f"{nothing}, as {type(settings.source).__name__} has no training images", asked[name])


def _card(architecture: Architecture) -> ModelCard | None:
    """Return what the file of weights says of itself, or None where there is none or it says nothing."""
    if architecture.weights in (None, PUBLISHED):
        return None
    return read_card(Path(str(architecture.weights)), _WEIGHTS)


def _normalization(settings: Evaluation, card: ModelCard | None) -> tuple[Sequence[float], Sequence[float]]:
    mean, std, architecture = settings.mean, settings.std, settings.architecture
    if mean is not None and std is not None:
        return mean, std
    if architecture.weights is None and settings.training.epochs:
        return MEAN if mean is None else mean, STD if std is None else std
    if (mean is None) != (std is None):
        raise fail("mean and std", f"both or neither beside {_WEIGHTS}", f"{mean} and {std}")
    if card is not None:
        return card.mean, card.std
    if architecture.weights not in (None, PUBLISHED) and not architecture.is_foreign:
        stored = stored_statistics(architecture.state()[0])
        if stored is not None:
            return stored
    known = published(architecture.name, architecture.weights)
    if known is not None:
        return statistics(known, architecture.arguments)
    told = "the numbers that images were normalized with in its training (--mean, --std)"
    raise fail("mean and std", told, f"none for {architecture.weights or architecture.name}, which does not say them")


def _labeled(settings: Evaluation, card: ModelCard | None) -> DatasetSpec:
    """Return the dataset with its labels as a network's logits, where the network is taken as it is."""
    source, architecture = settings.source, settings.architecture
    if settings.training.epochs:  # it learns the labels as they are
        return source
    if card is not None:
        found = adapt_to_model(source, card.classes, card.shape, card.geometry, _WEIGHTS)
    elif architecture.weights == PUBLISHED:
        known = published(architecture.name)
        assert known is not None
        found = source.adapt_to_model(known.classes, known.geometry)
        found = adapt_to_model(
            found, known.classes, found.shape, known.geometry, _WEIGHTS
        )  # it takes images of any size
    else:
        return source
    # One that only says what was so anyway is no other dataset, for a folder that goes on.
    same = found.classes == source.classes and found.geometry == source.geometry
    return source if same else found
