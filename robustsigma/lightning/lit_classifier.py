"""A LightningModule for image classification, for the batches of a `RobustDataModule` or of any loader."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from os import PathLike
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.network_state import full_precision, gathered
from robustsigma.engine.validation import choice, fail, number, optional
from robustsigma.engine.validation import images as check_images
from robustsigma.lightning.batch import Batch, as_batch
from robustsigma.lightning.batch_norm import AuxiliaryNorms, BatchNormPolicy, single_values, split_forward
from robustsigma.lightning.checkpoints import AtomicCheckpointIO
from robustsigma.lightning.epoch_mean import EpochMean
from robustsigma.lightning.loaders import KeySampler
from robustsigma.lightning.sample_labels import SampleLabels
from robustsigma.lightning.strategies import is_sharded, shard
from robustsigma.lightning.trades import Trades
from robustsigma.models.architecture import Architecture
from robustsigma.models.model_files import build_described
from robustsigma.models.weight_files import common_name, first_infinite, unwrapped, with_versions


class LitClassifier(pl.LightningModule):
    """Trains a network by cross-entropy on the images of a `RobustDataModule`, or of any loader.

    It logs `train_loss`, `train_acc`, and `val_CONDITION_acc` and `test_CONDITION_acc` for each condition. Batches of
    other loaders are (images, labels) or mappings, with images in [0, 1] or of uint8, and classes or probabilities as
    labels (see `robustsigma.lightning.batch.as_batch`); their condition is "clean". Of a stream without a length or
    `limit_train_batches`, each process logs the training means of its own images.

    A checkpoint holds all arguments except the optimizer. `load_from_checkpoint(path)` rebuilds a network of
    robustsigma, torchvision or timm that was made by its name; pass any other as `net=`.

    Where BatchNorm sees a single value per channel (one image, seen as one pixel), it uses its running statistics.

    Args:
        net: network from normalized images to logits.
        mean: value per channel that is subtracted from images in [0, 1]; None is 0. A checkpoint's value replaces it.
        std: value per channel that is divided by; None is 1. A checkpoint's value replaces it.
        optimizer: function that makes the optimizer from the parameters.
        schedule: "cosine" lets the learning rate fall to zero over the training, step by step; "constant" keeps it.
            With a loader without a length, a cosine needs the Trainer's `max_steps`.
        label_smoothing: fraction of the label's weight that is spread over all classes.
        sample_labels: labels and weight of SIGMA samples; None is `SampleLabels()`, which treats them as other images.
        trades: adds TRADES' divergence to the cross-entropy; None is the cross-entropy alone.
        batch_norm: how BatchNorm treats a batch of clean and perturbed images. "joint" is one forward pass with common
            statistics. "separate" passes clean and perturbed images one after the other, each with its own batch
            statistics; the running ones follow both. "auxiliary" uses in addition a second set of BatchNorm layers for
            the perturbed images (`AuxiliaryNorms`), which is not part of the classifier: attacks, validation and the
            exported weights use the layers of the clean images. A batch of one kind is one pass.
        chunk_size: largest number of images in a pass of an attack; None chooses by image size (see `Classifier`).
        gradient_dtype: "bfloat16" (or torch.bfloat16) runs the gradient passes of attacks under autocast, "tf32" lets
            them round to TF32 on a GPU; None is full precision. The Trainer's `precision` is that of the training.

    Raises:
        ValueError: an argument of another type or range.

    Example:
        >>> from robustsigma.models import network
        >>> model = LitClassifier(network("small_cnn", 3, 5), mean=[0.5], std=[0.25])
        >>> model(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 5])
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
        trades: Trades | None = None,
        batch_norm: BatchNormPolicy = "joint",
        chunk_size: int | None = None,
        gradient_dtype: Literal["bfloat16", "tf32"] | None = None,
    ) -> None:
        super().__init__()
        choice("schedule", schedule, ("cosine", "constant"))
        label_smoothing = number("label_smoothing", label_smoothing, 0, 1)
        choice("batch_norm", batch_norm, get_args(BatchNormPolicy))
        sample_labels = _settings("sample_labels", sample_labels, SampleLabels)
        trades = _settings("trades", trades, Trades)
        if not callable(optimizer):
            raise fail("optimizer", "a callable that makes an optimizer from parameters", repr(optimizer)[:80])
        # The annotation has only what a command line can give: a torch.dtype would be parsed as a class there.
        if gradient_dtype is not None and gradient_dtype is not torch.bfloat16:
            choice("gradient_dtype", gradient_dtype, ("bfloat16", "tf32"))
        self.classifier = Classifier(net, mean=mean, std=std, chunk_size=chunk_size, gradient_dtype=gradient_dtype)
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.sample_labels = sample_labels or SampleLabels()
        self.trades, self.batch_norm = trades, batch_norm
        self.auxiliary = AuxiliaryNorms(self.classifier) if batch_norm == "auxiliary" else None
        self.means = nn.ModuleDict()
        self._checked: set[str] = set()  # stages whose images were looked at

    def setup(self, stage: str) -> None:
        """Start a second set of BatchNorm layers as a copy of the classifier's, which may have loaded weights.

        Under `ModelParallelStrategy` (FSDP2), the network is sharded next, unless a subclass has a `configure_model`.
        """
        self._checked.clear()
        self.means.clear()
        if stage == "fit" and self.auxiliary is not None:
            self.auxiliary.start(self.classifier)
        if self.device_mesh is not None and type(self).configure_model is pl.LightningModule.configure_model:
            # Not a method of the class, of which Lightning's WeightAveraging would warn.
            self.configure_model = partial(shard, self.classifier.net, self.device_mesh["data_parallel"])  # type: ignore[method-assign]

    def on_fit_start(self) -> None:
        """Check the network.

        Raises:
            ValueError: a network on the meta device; or separate passes of clean and perturbed images with BatchNorm
                statistics that processes share: processes with batches of different kinds would wait forever.
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            raise fail("net", "weights with numbers", "the meta device: call to_empty and load weights first")
        shared = any(isinstance(module, nn.SyncBatchNorm) for module in self.modules())
        if shared and self.batch_norm != "joint":
            raise fail("batch_norm", "'joint' with the Trainer's sync_batchnorm", repr(self.batch_norm))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images in [0, 1]."""
        return self.classifier(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        batch = self._batch(batch, "train")
        # Before the first pass in training mode changes running statistics.
        made = None
        if self.trades is not None:
            with gathered(self.modules()):
                made = self.trades.perturbed(self.classifier, batch.images, self.current_epoch)
        if self.batch_norm == "joint":
            with single_values(batch.images):
                logits = self(batch.images)
        else:
            several = self.trainer.world_size > 1
            logits = split_forward(self.classifier, batch.images, batch.changed, self.auxiliary, whole=several)
        size = len(batch) - batch.padding
        logits, labels = logits[:size], batch.labels[:size]
        loss = self.sample_labels.loss(logits, labels, batch.sampled[:size], self.label_smoothing)
        if self.trades is not None and made is not None:
            with single_values(made):
                other = self(made) if self.auxiliary is None else self.auxiliary(self.classifier, made)
            loss = loss + self.trades.divergence(logits, other[:size])
        self._log_mean("train_loss", loss, size)
        self._log_mean("train_acc", _correct(logits.detach(), labels).sum() / max(1, size), size)
        return loss * self._loss_scale(size, batch_idx)

    def _batch(self, batch: Any, stage: str) -> Batch:
        """Return a batch of any loader; of each stage, the first one's pixels are checked."""
        found = as_batch(batch)
        if stage not in self._checked:
            check_images(found.images, self.classifier.bounds)
            self._checked.add(stage)
        return found

    def _loss_scale(self, size: int, batch_idx: int) -> float:
        """Return the factor of a process's loss that makes their mean the mean over the images of all processes.

        Processes do not ask each other, as those of a stream may have unequal numbers of batches.
        """
        loader: Any = self.trainer.train_dataloader
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, KeySampler):
            return 1.0
        return sampler.num_replicas * size / sampler.images(batch_idx, loader.batch_size)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the accuracy under the batch's condition; return logits."""
        return self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Log the accuracy under the batch's condition; return logits."""
        return self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the probabilities (B, K) of a batch, or of images in [0, 1]."""
        return self._logits(batch if isinstance(batch, Tensor) else as_batch(batch).images).softmax(1)

    def _logits(self, images: Tensor) -> Any:
        with full_precision():  # as in attacks, whatever rounding PyTorch is set to on a GPU
            return self(images)

    def _evaluate(self, given: Any, stage: str, loader: int) -> Tensor:
        batch = self._batch(given, stage)
        logits = self._logits(batch.images)
        # Each condition of a RobustDataModule has a loader; others are told apart as Lightning does it.
        place = f"/dataloader_idx_{loader}" if loader and batch is not given else ""
        name = f"{stage}_{batch.info.condition}_acc{place}"
        self._log_mean(name, _correct(logits, batch.labels).mean(), len(batch), prog_bar=stage == "val")
        return logits

    def _log_mean(self, name: str, value: Tensor, size: int, *, prog_bar: bool = True) -> None:
        """Log the mean over the images of an epoch, of all processes."""
        key = name.replace("_", "__").replace(".", "_d")  # a module's name has no dot, and no two names share a key
        if key not in self.means:
            # Processes wait for each other at the end of an epoch, which of a stream may be at another step.
            alone = self.trainer.training and math.isinf(self.trainer.num_training_batches)
            self.means[key] = EpochMean(sync_on_compute=not alone).to(self.device)
        mean = self.means[key]
        assert isinstance(mean, EpochMean)
        mean.update(value, size)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(name, mean, prog_bar=prog_bar, metric_attribute=f"means.{key}", **options)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its schedule unless that is constant."""
        optimizer = self.optimizer(self.parameters())
        if self.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            expected = '"constant", or a Trainer with max_steps, as the number of training steps is not known'
            raise fail("schedule", expected, '"cosine"')

        def factor(step: int) -> float:
            return (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the constructor's arguments as plain types, with the network's description if it has one."""
        dtype = self.classifier.gradient_dtype
        found: dict[str, Any] = {
            "schedule": self.schedule,
            "label_smoothing": self.label_smoothing,
            "sample_labels": asdict(self.sample_labels),
            "trades": None if self.trades is None else asdict(self.trades),
            "batch_norm": self.batch_norm,
            "chunk_size": self.classifier.chunk_size,
            "gradient_dtype": str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype,
        }
        architecture = getattr(unwrapped(self.classifier.net), "architecture", None)
        try:
            if architecture is not None:
                # What it prints tells a network whose layers were changed after it was built.
                printed = str(unwrapped(self.classifier.net))
                found["net"] = {**json.loads(json.dumps(asdict(architecture))), "printed": printed}
        except TypeError:  # arguments that are no plain types
            pass
        parameters = inspect.signature(type(self).__init__).parameters
        own = {name: value for name, value in found.items() if name in parameters}
        # A subclass may have saved its own; a network among them could not be read again.
        given = {k: v for k, v in checkpoint.get("hyper_parameters", {}).items() if not isinstance(v, nn.Module)}
        checkpoint["hyper_parameters"] = {**own, **given}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the module of a checkpoint; arguments are those of Lightning's own method.

        Raises:
            ValueError: a checkpoint that does not say how to build the network, or that has weights of another one.
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
        """Accept weights of compiled networks.

        Raises:
            ValueError: no weights, or weights that are not finite.
        """
        found = checkpoint.get("state_dict")
        if found is None and is_sharded(self):  # the strategy has loaded them
            return
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise fail("ckpt_path", "a checkpoint with a state dict", type(found).__name__)
        infinite = first_infinite(found)
        if infinite:
            raise fail("ckpt_path", "finite weights", f"others in {infinite}")
        own = self.state_dict()
        names = {common_name(name): name for name in own}
        checkpoint["state_dict"] = with_versions(
            self, {name if name in own else names.get(common_name(name), name): each for name, each in found.items()}
        )

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


def _rebuilt(described: Mapping[str, Any], state: Mapping[str, Any], path: Any) -> nn.Module:
    """Return the network that a checkpoint describes."""
    try:
        padding = described.get("padding")
        architecture = Architecture(str(described["name"]), dict(described["arguments"]), padding=padding)
        architecture.check_origin()
        prefix = "classifier.net."
        named = {common_name(key): value for key, value in state.items()}
        tensors = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
        built = build_described(architecture, tensors, path)
        if described.get("printed", str(built)) != str(built):
            raise fail("net", "the network that its description builds", "layers that were changed afterwards")
        return built
    except (KeyError, TypeError, ValueError) as error:
        expected = "the network itself, since what this checkpoint describes is not built"
        raise fail("net", f"{expected}: load_from_checkpoint(path, net=…)", error) from error


def _settings(name: str, value: Any, kind: type) -> Any:
    """Return settings, or None; a checkpoint has them as a mapping."""
    with suppress(TypeError):  # of other settings
        value = kind(**value) if isinstance(value, Mapping) else value
    optional(name, value, kind)
    return value


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each image whose largest logit is that of its (most probable) class, float (B,)."""
    return (logits.argmax(1) == (labels.argmax(1) if labels.ndim == 2 else labels)).float()
