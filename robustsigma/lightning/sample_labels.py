"""Which label a SIGMA sample is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsigma.engine import validation

Labels = Literal["original", "smoothed", "uniform"]


@dataclass(frozen=True)
class SampleLabels(validation.Settings):
    """The label of images that a search made (`Batch.sampled`: SIGMA samples, new or cached).

    A SIGMA sample is still recognizable, but the network gives its label a confidence near 0. It may be a hard image of
    its class, or an image of no class. Henry et al. (2025, section 6) keep the label.

    Args:
        labels: "original" trains on the image's label, "smoothed" on the label with `smoothing` of its weight spread
            over all classes, "uniform" on all classes equally.
        smoothing: fraction of the label's weight that "smoothed" spreads, in [0, 1].
        weight: weight of a sample's loss, relative to other images. The loss is the mean of the weighted losses over
            the batch.

    Example:
        >>> rule = SampleLabels("smoothed", smoothing=0.3)
        >>> loss = rule.loss(torch.zeros(2, 5), torch.tensor([0, 1]), sampled=torch.tensor([True, False]))
    """

    labels: Labels = "original"
    smoothing: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        validation.number("smoothing", self.smoothing, 0, 1)
        validation.number("weight", self.weight, 0)

    def loss(self, logits: Tensor, labels: Tensor, sampled: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean of the weighted cross-entropies, (), or 0 for a batch without images.

        Args:
            logits: (B, K).
            labels: int64 (B,), or probabilities (B, K).
            sampled: bool (B,), where the image is a sample.
            label_smoothing: smoothing of other images, and of samples that keep the original label.
        """
        if len(labels) == 0:
            return logits.sum()
        if self.labels == "original" and self.weight == 1:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        own = {"original": label_smoothing, "smoothed": self.smoothing, "uniform": 1.0}[self.labels]
        spread = torch.where(sampled, own, label_smoothing).to(logits.dtype)
        weight = torch.where(sampled, self.weight, 1.0).to(logits.dtype)
        own_losses = F.cross_entropy(logits, labels, reduction="none")
        losses = (1 - spread) * own_losses - spread * logits.log_softmax(1).mean(1)
        return (weight * losses).mean()
