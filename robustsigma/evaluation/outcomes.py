"""Per-image outcomes of one model under one condition, and how they are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.metrics import linf, rmse, ssim
from robustsigma.engine.perturbations import AttackState, Perturbation
from robustsigma.engine.perturbations.projections import lengths
from robustsigma.engine.scores import target_score
from robustsigma.engine.validation import not_finite
from robustsigma.evaluation.threat_model import minimum_norm
from robustsigma.runs.blocks import Rows
from robustsigma.runs.progress import Step


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


class Advance:
    """Counts finished cells of blocks, and how far an attack in parts is with the current one.

    Args:
        step: called with the number of finished cells and of all.
        total: number of all, or None.
    """

    def __init__(self, step: Step, total: int | None) -> None:
        self.step, self.total, self.done = step, total, 0

    def __call__(self) -> None:
        """Count a cell of a block."""
        self.done += 1
        self.step(self.done, self.total)

    def within(self, state: AttackState) -> None:
        """Show the progress of an attack on the current block."""
        self.step(self.done + state.fraction, self.total)


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
    norm = minimum_norm(perturbation)
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
    highest = logits.float().softmax(1).amax(1)
    if highest.isnan().any():  # -inf is a class that is left out
        raise not_finite("logits", classifier.net)
    return {
        "predictions": logits.argmax(1),
        "confidences": target_score(logits.float(), labels, "prob"),
        "max_confidence": highest,
        "top5": (logits > logits.gather(1, labels[:, None])).sum(1) < 5,
    }


def to_rows(found: Mapping[str, Tensor]) -> Rows:
    """Return tensors as arrays."""
    return {name: value.detach().cpu().numpy() for name, value in found.items()}
