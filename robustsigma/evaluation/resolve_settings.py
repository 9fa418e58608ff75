"""Settings that the data and the network decide: normalization, labels, and checks that nothing is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from robustsigma.data.dataset_spec import DatasetSpec, adapt_and_check
from robustsigma.engine.validation import fail
from robustsigma.evaluation.settings import Evaluation
from robustsigma.models import ModelCard
from robustsigma.models.model_files import read_card
from robustsigma.models.published_weights import PUBLISHED, guesses, published, statistics, warn_of_guess
from robustsigma.models.weight_files import stored_statistics

_WEIGHTS = "architecture.weights"
MEAN, STD = (0.5,), (0.25,)  # of a network that is trained here


def resolve_settings(settings: Evaluation) -> Evaluation:
    """Return settings with mean, std and labels filled in, or refuse settings that cannot be run.

    Mean and std are those that the network was trained with. If the network is not trained here
    (`training.epochs: 0`), the labels are the indices of its logits. Complete settings come back as they are.

    Args:
        settings: settings of an evaluation.

    Raises:
        ValueError: a training without training images, a network of other classes, or one whose normalization is
            unknown.
    """
    again, architecture = settings.retraining, settings.architecture
    asked = {
        "training.epochs": settings.training.epochs,
        "retraining.retrain": ", ".join(again.retrain),
        "retraining.on_the_fly": ", ".join(again.on_the_fly),
        "sweep": "" if settings.sweep is None else "one",
    }
    name = next((name for name, value in asked.items() if value), None)
    if name is not None and "train" not in settings.dataset.splits:
        nothing = {"training.epochs": "0", "sweep": "none"}.get(name, "no regime ({})")
        raise fail(name, f"{nothing}, as {type(settings.dataset).__name__} has no training images", asked[name])
    from_file = architecture.weights not in (None, PUBLISHED)
    card = read_card(Path(str(architecture.weights)), _WEIGHTS) if from_file else None
    mean, std = _normalization(settings, card)
    return dataclasses.replace(settings, mean=mean, std=std, dataset=_labeled(settings, card))


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
        mean, std = statistics(known, architecture.arguments)
        if guesses(known, architecture.weights):
            warn_of_guess(architecture.name, architecture.weights, {"mean": list(mean), "std": list(std)})
        return mean, std
    told = "the numbers that images were normalized with in its training (--mean, --std)"
    raise fail("mean and std", told, f"none for {architecture.weights or architecture.name}, which does not state them")


def _labeled(settings: Evaluation, card: ModelCard | None) -> DatasetSpec:
    """Return the dataset, whose labels are the network's logits if the network is not trained here."""
    dataset, architecture = settings.dataset, settings.architecture
    if settings.training.epochs:
        return dataset
    if card is not None:
        found = adapt_and_check(dataset, card.classes, card.shape, card.geometry, _WEIGHTS)
    elif architecture.weights == PUBLISHED:
        known = published(architecture.name)
        assert known is not None
        found = dataset.adapt_to_model(known.classes, known.geometry)
        # It takes images of any size.
        found = adapt_and_check(found, known.classes, found.shape, known.geometry, _WEIGHTS)
    else:
        return dataset
    # An adapted dataset that is the same as before would change the folder's fingerprint.
    same = found.classes == dataset.classes and found.geometry == dataset.geometry
    return dataset if same else found
