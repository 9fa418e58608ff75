"""The LightningModule of an image classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from robustsigma.data.source import Batch
from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier


class LitClassifier(pl.LightningModule):
    """Cross-entropy on whatever images the data module hands over.

    It logs `train_loss`, `train_acc`, and `val_CONDITION_acc` and `test_CONDITION_acc` for each condition.

    Args:
        net: from normalised images to logits.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divided by.
        optimizer: makes the optimiser from the parameters.
        schedule: "cosine" lets the learning rate fall to zero over the training, step by step; "constant" keeps it.
        label_smoothing: share of the label's weight that is spread over all classes.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Literal["cosine", "constant"] = "cosine",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        validation.choice("schedule", schedule, ("cosine", "constant"))
        validation.number("label_smoothing", label_smoothing, 0, 1)
        self.classifier = Classifier(net, mean=mean, std=std)
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [0, 1]."""
        return self.classifier(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        logits = self(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        size = len(batch.labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        correct = (logits.detach().argmax(1) == batch.labels).float().mean()
        self.log("train_acc", correct, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the accuracy under the batch's condition; return logits."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the accuracy under the batch's condition; return logits."""
        return self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> Tensor:
        logits: Tensor = self(batch.images)
        self.log(
            f"{stage}_{batch.condition}_acc",
            (logits.argmax(1) == batch.labels).float().mean(),
            prog_bar=stage == "val",
            batch_size=len(batch.labels),
            add_dataloader_idx=False,
            sync_dist=True,
        )
        return logits

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and its schedule unless that is constant."""
        optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
