"""The LightningModule of an image classifier."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from robustsigma.data.dataset_spec import Batch
from robustsigma.engine import validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.precision import full_precision
from robustsigma.engine.validation import fail
from robustsigma.models.architecture import Architecture
from robustsigma.models.model_files import build_described
from robustsigma.models.weight_files import common_name, first_infinite, unwrapped
from robustsigma.training.batch_norm import AuxiliaryNorms, BatchNormPolicy, single_values, split_forward
from robustsigma.training.checkpoint_io import AtomicCheckpointIO
from robustsigma.training.epoch_mean import EpochMean
from robustsigma.training.sample_labels import SampleLabels


class LitClassifier(pl.LightningModule):
    """Cross-entropy on whatever images the data module hands over.

    It logs `train_loss`, `train_acc`, and `val_CONDITION_acc` and `test_CONDITION_acc` for each condition.

    `load_from_checkpoint(path)` builds a network of robustsigma, torchvision or timm that has been made by its name;
    give another as `net=`. The checkpoint holds all arguments but the optimizer.

    BatchNorm normalizes a single value per channel (one image, seen as one pixel) by its running statistics.

    Args:
        net: from normalized images to logits.
        mean: per channel, subtracted from images in [0, 1]; None is 0. A checkpoint's takes its place.
        std: per channel, divided by; None is 1. The same.
        optimizer: makes the optimizer from the parameters.
        schedule: "cosine" lets the learning rate fall to zero over the training, step by step; "constant" keeps it. A
            cosine over a loader without a length needs the Trainer's `max_steps`.
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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
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
        if isinstance(sample_labels, Mapping):  # as a checkpoint has it
            sample_labels = SampleLabels(**sample_labels)  # type: ignore[unreachable]
        validation.optional("sample_labels", sample_labels, SampleLabels)
        if not callable(optimizer):
            raise fail("optimizer", "a callable that makes an optimizer from parameters", repr(optimizer)[:80])
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
            self.auxiliary.start(self.classifier)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the arguments, and the global generators' states, from which dropout draws: a resumed training does."""
        checkpoint["generators"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["generators"]["cuda"] = torch.cuda.get_rng_state(self.device)
        arguments = self._arguments()
        taken = inspect.signature(type(self).__init__).parameters
        own = {name: value for name, value in arguments.items() if name in taken}
        given = checkpoint.get("hyper_parameters", {})  # of a subclass; a network among them could not be read again
        checkpoint["hyper_parameters"] = {**own, **{k: v for k, v in given.items() if not isinstance(v, nn.Module)}}

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain types, with the network's description if it has one."""
        dtype = self.classifier.gradient_dtype
        found: dict[str, Any] = {
            "schedule": self.schedule,
            "label_smoothing": self.label_smoothing,
            "sample_labels": asdict(self.sample_labels),
            "batch_norm": self.batch_norm,
            "chunk_size": self.classifier.chunk_size,
            "gradient_dtype": str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype,
        }
        architecture = getattr(unwrapped(self.classifier.net), "architecture", None)
        try:
            return found if architecture is None else {"net": json.loads(json.dumps(asdict(architecture))), **found}
        except TypeError:  # arguments that are no plain types
            return found

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the module of a checkpoint; arguments as of Lightning's own method.

        Raises:
            ValueError: a checkpoint that does not say how to build the network, or with weights of another one.
        """
        net = inspect.signature(cls.__init__).parameters.get("net")
        if net is not None and "net" not in kwargs and isinstance(checkpoint_path, str | PathLike):
            found = AtomicCheckpointIO().load_checkpoint(checkpoint_path, weights_only=kwargs.get("weights_only"))
            described = found.get("hyper_parameters", {}).get("net")
            if isinstance(described, Mapping):
                kwargs["net"] = _rebuilt(described, found["state_dict"], checkpoint_path)
            elif described is None and net.default is net.empty:
                expected = "the network itself, since this checkpoint does not say how to build it"
                raise fail("net", f"{expected}: load_from_checkpoint(path, net=…)", "none")
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the generators' states back for when a training starts, and weights of compiled networks.

        Raises:
            ValueError: no weights, or such as are not finite.
        """
        found = checkpoint.get("state_dict")
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise fail("ckpt_path", "a checkpoint with a state dict", type(found).__name__)
        infinite = first_infinite(found)
        if infinite:
            raise fail("ckpt_path", "finite weights", f"others in {infinite}")
        names = {common_name(name): name for name in self.state_dict()}
        checkpoint["state_dict"] = {names.get(common_name(name), name): value for name, value in found.items()}
        self._generators = checkpoint.get("generators")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as PyTorch does.

        Raises:
            ValueError: weights of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            told = " ".join(" ".join(str(error).split()).partition(": ")[2].split())[:300]
            hint = "; mean and std are arguments, where a checkpoint has none" if "classifier.mean" in told else ""
            raise fail("ckpt_path", f"weights that fit this {type(self).__name__}{hint}", told) from error

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
            ValueError: clean and perturbed images apart, with statistics shared by processes; a network on the meta
                device.
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            raise fail("net", "weights with numbers", "the meta device: call to_empty and load weights first")
        shared = any(isinstance(module, nn.SyncBatchNorm) for module in self.modules())
        if shared and self.batch_norm != "joint":
            raise fail("batch_norm", "'joint' with the Trainer's sync_batchnorm", repr(self.batch_norm))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [0, 1]."""
        return self.classifier(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        _check_batch(batch)
        if self.batch_norm == "joint":
            with single_values(batch.images):
                logits = self(batch.images)
        else:
            several = self.trainer.world_size > 1
            logits = split_forward(self.classifier, batch.images, batch.changed, self.auxiliary, whole=several)
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
        _check_batch(batch)
        logits = self._logits(batch.images)
        right = (logits.argmax(1) == batch.labels).float().mean()
        self._log_mean(f"{stage}_{batch.condition}_acc", right, len(batch.labels), prog_bar=stage == "val")
        return logits

    def _log_mean(self, name: str, value: Tensor, size: int, *, prog_bar: bool = True) -> None:
        """Log the mean over the images of an epoch, of all processes."""
        key = name.replace("_", "__").replace(".", "_d")  # a module's name has no dot, and no two names have one key
        if key not in self.means:
            self.means[key] = EpochMean().to(self.device)
        mean = self.means[key]
        assert isinstance(mean, EpochMean)
        mean.update(value, size)
        whole: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(name, mean, prog_bar=prog_bar, metric_attribute=f"means.{key}", **whole)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its schedule unless that is constant."""
        optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            told = '"constant", or a Trainer with max_steps, as the number of training steps is not known'
            raise fail("schedule", told, '"cosine"')

        def share(step: int) -> float:
            return (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _rebuilt(described: Mapping[str, Any], state: Mapping[str, Any], path: Any) -> nn.Module:
    """Return the network that a checkpoint describes."""
    try:
        architecture = Architecture(
            str(described["name"]), dict(described["arguments"]), padding=described.get("padding")
        )
        architecture.check_origin()
        prefix = "classifier.net."
        named = {common_name(key): value for key, value in state.items()}
        tensors = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
        return build_described(architecture, tensors, path)
    except (KeyError, TypeError, ValueError) as error:
        expected = "the network itself, since what this checkpoint describes is not built"
        raise fail("net", f"{expected}: load_from_checkpoint(path, net=…)", error) from error


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, Batch):
        told = (
            "one of a RobustDataModule, passed as in trainer.fit(model, datamodule=data); Datasets(…) makes its source"
        )
        raise fail("batch", told, type(batch).__name__)
