"""The LightningModule of an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from robustsigma.data.source import Batch
from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.precision import full_precision
from robustsigma.engine.validation import fail
from robustsigma.models.weights import first_infinite
from robustsigma.training.batch_norm import AuxiliaryNorms, BatchNormPolicy, apart
from robustsigma.training.epoch_mean import EpochMean
from robustsigma.training.sample_labels import SampleLabels


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
        sample_labels: the labels and the weight of SIGMA samples; None is `SampleLabels()`, which treats them as any
            other image.
        batch_norm: what a batch of clean and perturbed images is to BatchNorm. "joint" is one forward pass with common
            statistics. "separate" passes clean and perturbed images one after the other, each with its own batch
            statistics; the running ones follow both. "auxiliary" has besides a second set of BatchNorm layers for
            the perturbed images (`AuxiliaryNorms`), which is not part of the classifier: attacks, validation and the
            exported weights use the layers of the clean images. A batch of one kind is one pass.
        chunk_size: the most images in a pass of an attack; None chooses by image size (see `Classifier`).
        gradient_dtype: "bfloat16" runs the gradient passes of attacks under autocast, "tf32" lets them round to TF32
            on a GPU; None: full precision. In Python torch.bfloat16 will do as well. How the training itself is
            computed is the Trainer's `precision`.
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
        sample_labels: SampleLabels | None = None,
        batch_norm: BatchNormPolicy = "joint",
        chunk_size: int | None = None,
        gradient_dtype: Literal["bfloat16", "tf32"] | None = None,
    ) -> None:
        super().__init__()
        validation.choice("schedule", schedule, ("cosine", "constant"))
        label_smoothing = validation.number("label_smoothing", label_smoothing, 0, 1)
        validation.choice("batch_norm", batch_norm, get_args(BatchNormPolicy))
        validation.optional("sample_labels", sample_labels, SampleLabels)
        if not callable(optimizer):
            raise fail("optimizer", "a callable that makes an optimiser from parameters", repr(optimizer)[:80])
        # The type says only what a command line can: a torch.dtype would be asked for as a class there.
        if gradient_dtype is not None and gradient_dtype is not torch.bfloat16:
            validation.choice("gradient_dtype", gradient_dtype, ("bfloat16", "tf32"))
        self.classifier = Classifier(net, mean=mean, std=std, chunk_size=chunk_size, gradient_dtype=gradient_dtype)
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.sample_labels = sample_labels or SampleLabels()
        self.batch_norm = batch_norm
        self.auxiliary = AuxiliaryNorms(self.classifier) if batch_norm == "auxiliary" else None
        self.means = nn.ModuleDict()
        self._generators: dict[str, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Let a second set of BatchNorm layers start where the classifier is, which may have been given weights."""
        if stage == "fit" and self.auxiliary is not None:
            self.auxiliary.restart(self.classifier)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the global generators are, from which dropout draws: a resumed training draws on from there."""
        checkpoint["generators"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["generators"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, for when a training starts.

        Raises:
            ValueError: the weights of another network, or such as are not finite.
        """
        _check_weights(self, checkpoint.get("state_dict"))
        self._generators = checkpoint.get("generators")

    def on_train_start(self) -> None:
        """Let the generators of a resumed training go on where they were."""
        found, self._generators = self._generators or {}, None
        if "cpu" in found:
            torch.set_rng_state(found["cpu"].cpu())
        if "cuda" in found and self.device.type == "cuda":
            torch.cuda.set_rng_state(found["cuda"].cpu(), self.device)

    def on_fit_start(self) -> None:
        """Refuse what would wait forever: processes whose batches are of different kinds make different passes.

        Raises:
            ValueError: clean and perturbed images apart, with statistics shared by processes.
        """
        shared = any(isinstance(module, nn.SyncBatchNorm) for module in self.modules())
        if shared and self.batch_norm != "joint":
            raise fail("batch_norm", "'joint' with the Trainer's sync_batchnorm", repr(self.batch_norm))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [0, 1]."""
        return self.classifier(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        if self.batch_norm == "joint":
            logits = self(batch.images)
        else:
            several = self.trainer.world_size > 1
            logits = apart(self.classifier, batch.images, batch.changed, self.auxiliary, whole=several)
        counted = None if batch.repeated is None else batch.counted
        loss = self.sample_labels.loss(logits, batch.labels, batch.sampled, self.label_smoothing, counted)
        right = (logits.detach().argmax(1) == batch.labels) & batch.counted
        size = len(batch.labels) if counted is None else int(counted.sum())
        self._log_mean("train_loss", loss, size)
        self._log_mean("train_acc", right.float().sum() / max(1, size), size)
        return loss * self._share(size)

    def _share(self, size: int) -> Tensor | float:
        """Return how a process's loss counts, so that their mean is the mean over the images of all."""
        world = self.trainer.world_size
        if world == 1 or not self.trainer.is_last_batch:  # the shares of all others are as large as each other
            return 1.0
        sizes = torch.tensor(float(size), device=self.device)
        return world * size / torch.as_tensor(self.trainer.strategy.reduce(sizes, reduce_op="sum"))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the accuracy under the batch's condition; return logits."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the accuracy under the batch's condition; return logits."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch | Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the probabilities (B, K) of a batch, or of images in [0, 1]."""
        return self._logits(batch if isinstance(batch, Tensor) else batch.images).softmax(1)

    def _logits(self, images: Tensor) -> Tensor:
        with full_precision():  # as attacks are made and judged, whatever PyTorch would round on a GPU
            logits: Tensor = self(images)
        return logits

    def _evaluate(self, batch: Batch, stage: str) -> Tensor:
        logits = self._logits(batch.images)
        right = (logits.argmax(1) == batch.labels).float().mean()
        self._log_mean(f"{stage}_{batch.condition}_acc", right, len(batch.labels), prog_bar=stage == "val")
        return logits

    def _log_mean(self, name: str, value: Tensor, size: int, *, prog_bar: bool = True) -> None:
        """Log the mean over the images of an epoch, of all processes."""
        key = name.replace(".", "_")
        if key not in self.means:
            self.means[key] = EpochMean().to(self.device)
        mean = self.means[key]
        assert isinstance(mean, EpochMean)
        mean.update(value, size)
        whole: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(name, mean, prog_bar=prog_bar, metric_attribute=f"means.{key}", **whole)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and its schedule unless that is constant."""
        optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _check_weights(module: nn.Module, found: Any) -> None:
    """Raise ValueError unless these are a state dict that fits."""
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise fail("ckpt_path", "a checkpoint with a state dict", type(found).__name__)
    wanted = module.state_dict()
    other = [key for key in {*wanted, *found} if key not in wanted or key not in found]
    other += [key for key in wanted if key not in other and wanted[key].shape != found[key].shape]
    if other:
        told = f"{len(other)} others, such as {min(other)}"
        raise fail("ckpt_path", f"weights that fit this {type(module).__name__}", told)
    infinite = first_infinite(found)
    if infinite:
        raise fail("ckpt_path", "finite weights", f"others in {infinite}")
