"""Pictures for the report, made with the first seed's base model: examples, a SIGMA path and explanations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.loading import label_of, load_batch, load_masks
from robustsigma.engine import noise
from robustsigma.engine.attributors import Attributor, IntegratedGradients, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import SigmaSample
from robustsigma.evaluation.plan import ADAPTIVE, TRANSFER, Condition
from robustsigma.runs.progress import Step

SHOWN = 8
_FRAMES = 8
_LARGE = 96 * 96  # pixels of an image

Pictures = tuple[dict[str, Any], dict[str, np.ndarray]]


def first_of_each_class(dataset: Dataset[Any], classes: int) -> list[int]:
    """Return the index of the first image of each class, of at most eight classes."""
    found: dict[int, int] = {}
    for index in range(len(dataset)):  # type: ignore[arg-type]
        found.setdefault(label_of(dataset, index), index)
        if len(found) == classes:
            break
    return [found[label] for label in sorted(found)][:SHOWN]


def illustrate(classifier: Classifier, dataset: DatasetSpec, conditions: Sequence[Condition], step: Step) -> Pictures:
    """Return sections of the results (`examples`, `path`, `explanations`) and their arrays.

    Args:
        classifier: the base model.
        dataset: dataset whose test images are shown.
        conditions: conditions of the matrix.
        step: called with the number of finished parts and of all parts.
    """
    tests = dataset.split("test")
    chosen = first_of_each_class(tests, len(dataset.classes))
    device = classifier.mean.device
    images, labels = (part.to(device) for part in load_batch(tests, chosen))
    indices = torch.tensor(chosen, device=device)
    sections: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    attributors = default_attributors(conditions, images.shape[2] * images.shape[3])
    parts: list[Callable[[Step], Pictures]] = [
        # The seeds of the test conditions: the reader sees images that the matrix counts.
        lambda step: examples(
            classifier, images, labels, conditions, lambda name: noise.image_seeds(0, "test", name, 0, indices), step
        ),
        lambda step: _path(classifier, images, labels, indices, conditions),
        lambda step: _explanations(classifier, images, labels, attributors, step),
    ]

    def advance(place: int, done: float, total: int | None) -> None:
        step(place + done / (total or 1), len(parts))

    for place, part in enumerate(parts):
        section, array = part(partial(advance, place))
        sections |= section
        arrays |= array
    masks = load_masks(tests, chosen)
    if masks is not None:
        arrays["masks"] = (masks >= 0.5).numpy()
    return sections, arrays


def examples(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    conditions: Sequence[Condition],
    seed: Callable[[str], int | Tensor],
    step: Step,
) -> Pictures:
    """Return the section `examples`: some images under each condition that is not transfer, and its array.

    Args:
        classifier: the base model.
        x: images (n, C, H, W), on its device.
        y: labels (n,).
        conditions: conditions of the matrix.
        seed: the seed of a condition, by its id.
        step: called with the number of finished conditions and of all.
    """
    items, images = [], []
    shown = [each for each in conditions if each.attack_setting != TRANSFER]
    for done, condition in enumerate(shown):
        step(done, len(shown))
        made = condition.perturbation(classifier, x, y, seed=seed(condition.id))
        with classifier.frozen():
            probabilities = classifier.logits(made).softmax(1)
        items.append(
            {
                "condition": condition.id,
                "predictions": probabilities.argmax(1).tolist(),
                "confidences": probabilities.gather(1, y[:, None])[:, 0].tolist(),
            }
        )
        images.append(made.cpu().numpy())
    return {"examples": {"labels": y.tolist(), "items": items}}, {"examples": np.stack(images)}


def _path(classifier: Classifier, x: Tensor, y: Tensor, indices: Tensor, conditions: Sequence[Condition]) -> Pictures:
    """Return the points of one walk, its confidence and its attribution."""
    found = [
        (c.perturbation, c.id)
        for c in conditions
        if isinstance(c.perturbation, SigmaSample) and c.attack_setting == ADAPTIVE
    ]
    if not found:
        return {}, {}
    sample, name = found[0]
    assert isinstance(sample, SigmaSample)
    seeds = noise.image_seeds(0, "test", name, 0, indices)
    one = dataclasses.replace(sample.sigma, paths=1)
    with classifier.frozen():
        walks = one.sample(classifier, x, y, seeds)
    converged = walks.curve.gather(1, walks.steps[:, None])[:, 0] <= one.epsilon
    # The longest of the walks that converged shows most; without one, the longest of all.
    row = int((walks.steps + converged * one.max_steps).argmax())
    target = y[row : row + 1]
    result = one(classifier, x[row : row + 1], target, seed=seeds[row : row + 1])
    with classifier.frozen():
        points, curve = one.path(classifier, x[row : row + 1], target, seeds[row : row + 1])
    shown = sorted({round(k) for k in np.linspace(0, len(points) - 1, _FRAMES)})
    section = {"target": int(target), "confidence": curve.tolist(), "shown_steps": shown}
    arrays = {
        "path": points[shown].cpu().numpy(),
        "path_attribution": result.heatmap("sum")[0].cpu().numpy(),
    }
    return {"path": section}, arrays


def _explanations(
    classifier: Classifier, x: Tensor, y: Tensor, attributors: dict[str, Attributor], step: Step
) -> Pictures:
    section, heat = [], []
    for done, (name, attributor) in enumerate(attributors.items()):
        step(done, len(attributors))
        result = attributor(classifier, x, y)
        gaps = (result.gap() / result.drop.abs().clamp_min(1e-12)).tolist()
        converged = result.all_converged().tolist()
        section.append({"method": name, "target": y.tolist(), "converged": converged, "gap": gaps})
        heat.append(result.heatmap("sum").cpu().numpy())
    return {"explanations": section}, {"explanations": np.stack(heat), "explained": x.cpu().numpy()}


def default_attributors(conditions: Sequence[Condition], pixels: int) -> dict[str, Attributor]:
    """Return SIGMA with the settings of the SIGMA condition and several paths, and Integrated Gradients.

    Without a SIGMA condition the walks are short, and images of many pixels have one path, as pictures are not worth
    minutes.
    """
    samples = [c.perturbation for c in conditions if isinstance(c.perturbation, SigmaSample)]
    is_large = pixels > _LARGE
    if samples or not is_large:
        sigma = (samples[0] if samples else SigmaSample()).sigma
        sigma = dataclasses.replace(sigma, paths=1 if is_large else 7)
    else:
        sigma = dataclasses.replace(Sigma.photographs(), paths=1, max_steps=24)
    return {"SIGMA": sigma, "integrated gradients": IntegratedGradients()}
