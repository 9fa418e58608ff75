"""Which label a SIGMA sample is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.serialization import safe_in_checkpoints

Labels = Literal["original", "smoothed", "uniform"]


@safe_in_checkpoints
@dataclass(frozen=True)
class SampleLabels(validation.Settings):
    """The label of the images that a search made (`Batch.sampled`: SIGMA samples, new or from the bank).

    A SIGMA sample is still recognizable, but the network gives its label a confidence near 0: is it a hard image of its
    class, or one of no class? Henry et al. (2025, section 6) keep the label.

    Args:
        labels: "original" trains on the image's label, "smoothed" on the label with `smoothing` of its weight spread
            over all classes, "uniform" on all classes alike.
        smoothing: share of the label's weight that is spread, in [0, 1]; of "smoothed".
        weight: of a sample's loss, where any other image's is 1. The loss is the mean of the weighted losses over
            the batch.
    """

    labels: Labels = "original"
    smoothing: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        validation.choice("labels", self.labels, get_args(Labels))
        validation.number("smoothing", self.smoothing, 0, 1)
        validation.number("weight", self.weight, 0)

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        sampled: Tensor,
        label_smoothing: float = 0.0,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted cross-entropy of a batch, ().

        Args:
            logits: (B, K).
            labels: int64 (B,).
            sampled: bool (B,), where the image is a sample.
            label_smoothing: of the other images, and of the samples where these keep the original label.
            counted: bool (B,), the images whose mean the loss is, 0 where it is none; None for all.
        """
        if counted is None and self.labels == "original" and self.weight == 1:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        own = {"original": label_smoothing, "smoothed": self.smoothing, "uniform": 1.0}[self.labels]
        spread = torch.where(sampled, own, label_smoothing).to(logits.dtype)
        weight = torch.where(sampled, self.weight, 1.0).to(logits.dtype)
        negative = -logits.log_softmax(1)
        losses = (1 - spread) * negative.gather(1, labels[:, None])[:, 0] + spread * negative.mean(1)
        if counted is None:
            return (weight * losses).mean()
        return (weight * losses)[counted].sum() / counted.sum().clamp_min(1)
