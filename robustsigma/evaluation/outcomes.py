"""Per-image outcomes of one model under one condition, and the loops that measure them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import linf, rmse, ssim
from robustsigma.engine.perturbations import AttackState, Perturbation
from robustsigma.engine.perturbations.projections import lengths
from robustsigma.engine.scores import target_score
from robustsigma.engine.validation import not_finite
from robustsigma.evaluation.plan import ADAPTIVE, NO_ATTACK, TRANSFER, Condition
from robustsigma.evaluation.threat_model import smallest_change
from robustsigma.lightning import Batch
from robustsigma.runs.blocks import Blocks, Rows
from robustsigma.runs.files import read_arrays, write_arrays
from robustsigma.runs.progress import Step

GIVEN_OUTCOMES = "outcomes.npz"  # in the folder of an evaluation of given models


def given_places(models: Iterable[str], conditions: Sequence[str]) -> dict[tuple[str, str], str]:
    """Return what the columns of each model and condition begin with in the file of outcomes of given models."""
    pairs = [(model, condition) for model in models for condition in conditions]
    return {pair: str(place) for place, pair in enumerate(pairs)}


@dataclass(frozen=True)
class Outcomes:
    """One row per image, in the order of their indices. All arrays are (N,), or None where they were not measured.

    Attributes:
        indices: index of each image in the test split.
        labels: true class.
        predictions: predicted class.
        confidences: softmax of the true class.
        max_confidence: softmax of the predicted class.
        top5: whether the true class is among the five highest logits.
        attempted: whether a search made the sample (SIGMA's walk).
        converged: whether the search converged.
        steps: number of steps of the search.
        rmse: distance to the clean image.
        linf: largest change of a pixel.
        ssim: structural similarity to the clean image.
        passes: forward and backward passes that the sample took; None in files of earlier versions.
        found_by: which attack of an `AutoAttack` misled the network, as of `Perturbed`; None without parts.
        zero_gradient: whether the difference of logits had no gradient, likewise.
        distance: to the clean image in the norm of a minimum-norm attack, for which alone it is measured.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float32]
    max_confidence: NDArray[np.float32]
    top5: NDArray[np.bool_]
    attempted: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    steps: NDArray[np.int64]
    rmse: NDArray[np.float32]
    linf: NDArray[np.float32]
    ssim: NDArray[np.float32]
    passes: NDArray[np.float32] | None = None
    found_by: NDArray[np.int64] | None = None
    zero_gradient: NDArray[np.bool_] | None = None
    distance: NDArray[np.float32] | None = None

    @property
    def correct(self) -> NDArray[np.float64]:
        """1 where the prediction is correct, else 0."""
        return (self.predictions == self.labels).astype(np.float64)

    def write(self, path: Path) -> None:
        """Write an .npz file in one step."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        write_arrays(path, {name: column for name, column in columns.items() if column is not None})

    @staticmethod
    def read(path: Path) -> Outcomes:
        """Read an .npz file; a damaged file is a ValueError."""
        return Outcomes(**read_arrays(path))


def given_outcomes(rows: Rows, models: Iterable[str], conditions: Sequence[str]) -> dict[tuple[str, str], Outcomes]:
    """Return the outcomes of each model and condition, of all columns of an evaluation of given models."""
    shared = {key: rows[key] for key in ("indices", "labels")}
    own = [each.name for each in fields(Outcomes) if each.name not in shared]
    return {
        key: Outcomes(**shared, **{name: rows[f"{place}.{name}"] for name in own if f"{place}.{name}" in rows})
        for key, place in given_places(models, conditions).items()
    }


class Advance:
    """Counts finished batches, and how far an attack in parts is with the current one.

    Args:
        step: called with the number of finished batches and of all.
        total: number of all, or None.
    """

    def __init__(self, step: Step, total: int | None) -> None:
        self.step, self.total, self.done = step, total, 0

    def __call__(self) -> None:
        """Count a batch."""
        self.done += 1
        self.step(self.done, self.total)

    def within(self, state: AttackState) -> None:
        """Show the progress of an attack on the current batch."""
        self.step(self.done + state.fraction, self.total)


def attack_images(
    classifier: Classifier,
    batches: Iterable[Batch],
    perturbation: Perturbation,
    condition: str,
    blocks: Blocks,
    advance: Advance,
    *,
    keep_images: bool,
) -> tuple[Outcomes, NDArray[np.float32] | None]:
    """Perturb test images against a model and measure its outcomes.

    Args:
        classifier: the model, on its device.
        batches: batches of the images that `blocks` does not have yet.
        perturbation: perturbation of the condition.
        condition: its id; with each image's index, the seed of its randomness.
        blocks: the finished rows.
        advance: called after each batch, and within one by attacks in parts.
        keep_images: whether to return the perturbed images as well.

    Returns:
        The outcomes of all images in `blocks`, and the perturbed images (N, C, H, W) or None.
    """
    device = classifier.mean.device
    for batch in batches:
        clean, labels, indices = (part.to(device) for part in (batch.images, batch.labels, batch.indices))
        seeds = noise.image_seeds(0, "test", condition, 0, indices)
        images, found = measure(classifier, perturbation, clean, labels, seeds, advance)
        found |= {"indices": indices, "labels": labels, **({"images": images} if keep_images else {})}
        blocks.add(to_rows(found))
        advance()
    rows = blocks.all()
    kept = rows.pop("images") if keep_images else None
    return Outcomes(**rows), kept


def transfer_images(
    classifier: Classifier,
    samples: Mapping[str, Tensor],
    made: Outcomes,
    batch_size: int,
    blocks: Blocks,
    advance: Advance,
) -> Outcomes:
    """Return a model's outcomes on samples that were made against another model.

    Args:
        classifier: the model, on its device.
        samples: "images" (N, C, H, W), "labels" and "indices" (N,).
        made: outcomes of the model that the samples were made against: how they were made is the same here.
        batch_size: images per batch.
        blocks: the finished rows.
        advance: called after each batch, and within one by attacks in parts.
    """
    if not np.array_equal(made.indices, samples["indices"].numpy()):
        raise RuntimeError("the stored samples are not of the images that are tested")
    device = classifier.mean.device
    for start in range(len(blocks), len(made.indices), batch_size):
        images, labels = (samples[key][start : start + batch_size].to(device) for key in ("images", "labels"))
        blocks.add(to_rows(predict(classifier, images, labels)))
        advance()
    return dataclasses.replace(made, **blocks.all())


def measure_block(
    models: Mapping[str, Classifier],
    images: Tensor,
    labels: Tensor,
    conditions: Sequence[Condition],
    seed: int,
    advance: Advance,
) -> dict[tuple[str, str], Rows]:
    """Show a block of images to every model under every condition.

    Args:
        models: by id, each on its device; transferred samples are made against the first one.
        images: clean, (B, C, H, W) in [0, 1].
        labels: (B,).
        conditions: conditions of the matrix; those of transferred samples come after the adaptive ones.
        seed: seed of every perturbation.
        advance: called after each cell, and within one by attacks in parts.

    Returns:
        The outcomes by model and condition, without labels and indices.
    """
    found: dict[tuple[str, str], Rows] = {}
    of_base: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}  # samples by the name of their condition
    moved = {each.name for each in conditions if each.attack_setting == TRANSFER}
    devices = {classifier.mean.device for classifier in models.values()}
    blocks = {device: (images.to(device), labels.to(device)) for device in devices}
    for condition in conditions:
        for place, (name, classifier) in enumerate(models.items()):
            clean, target = blocks[classifier.mean.device]
            own = condition.attack_setting == ADAPTIVE or (condition.attack_setting == NO_ATTACK and not place)
            if own:
                made, numbers = measure(classifier, condition.perturbation, clean, target, seed, advance)
                if not place and (condition.attack_setting == NO_ATTACK or condition.name in moved):
                    of_base[condition.name] = made, numbers
            else:
                made, numbers = of_base[condition.name]
                if place:  # the base model has seen its own samples
                    numbers = {**numbers, **predict(classifier, made.to(clean.device), target)}
            found[name, condition.id] = to_rows(numbers)
            advance()
        if condition.attack_setting != ADAPTIVE:
            of_base.pop(condition.name)
    return found


def measure(
    classifier: Classifier,
    perturbation: Perturbation,
    clean: Tensor,
    labels: Tensor,
    seed: int | Tensor,
    advance: Advance,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Perturb images against a model, and return the images with the fields of the model's `Outcomes` on them."""
    state = AttackState(advance.within) if perturbation.in_parts else None
    made = perturbation(classifier, clean, labels, seed=seed, return_info="search", state=state)
    same = torch.equal(made.images, clean)  # as untouched images are: their similarity is 1
    norm = smallest_change(perturbation)
    found = {
        "passes": made.forwards + made.backwards if made.forwards is not None and made.backwards is not None else None,
        "found_by": made.found_by,
        "zero_gradient": made.zero_gradient,
        "distance": None if norm is None else lengths(made.images - clean, norm),
    }
    return made.images, {
        **{name: value for name, value in found.items() if value is not None},
        **predict(classifier, made.images, labels),
        "attempted": made.attempted,
        "converged": made.converged,
        "steps": made.steps,
        "rmse": rmse(made.images, clean),
        "linf": linf(made.images, clean),
        "ssim": torch.ones_like(clean[:, 0, 0, 0]) if same else ssim(made.images, clean),
    }


def predict(classifier: Classifier, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the fields of a model's `Outcomes` that are about its logits, (B,) each."""
    with classifier.frozen():
        logits = classifier.logits(images)
    if logits.isnan().any():
        raise not_finite("logits", classifier.net)
    return {
        "predictions": logits.argmax(1),
        "confidences": target_score(logits.float(), labels, "prob"),
        "max_confidence": logits.float().softmax(1).amax(1),
        "top5": (logits > logits.gather(1, labels[:, None])).sum(1) < 5,
    }


def to_rows(found: Mapping[str, Tensor]) -> Rows:
    """Return tensors as arrays."""
    return {name: value.detach().cpu().numpy() for name, value in found.items()}
