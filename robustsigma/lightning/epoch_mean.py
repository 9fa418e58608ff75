"""The mean of an epoch that LitClassifier logs."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class EpochMean(Metric):
    """The mean over the images of an epoch, of all processes, from batch means.

    Lightning's own mean rounds the number of images down to a multiple of the processes. The `MeanMetric` of
    torchmetrics either leaves NaN out, which would hide a training that diverged, or (1.9) forgets the weights.

    Args:
        sync_on_compute: False is the mean over the images of this process.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, mean: Tensor, images: int) -> None:
        """Add the mean over some images."""
        # Not in place: the sums may have been made in the inference mode of a validation.
        self.total = self.total + mean.detach() * images
        self.images = self.images + images

    def compute(self) -> Tensor:
        """Return the mean over all images, or 0 without any."""
        return self.total / self.images.clamp_min(1)
