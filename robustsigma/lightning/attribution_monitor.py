"""AttributionMonitor: heatmaps of the same validation images, epoch after epoch, in the logger of any project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from robustsigma.data.loading import load_masks
from robustsigma.engine import noise, validation
from robustsigma.engine.attributors import Attribution, Attributor, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.metrics import InsertionDeletion, Localization, MetricContext, RelativeStandardError
from robustsigma.engine.network_state import gathered
from robustsigma.engine.perturbations import Perturbation
from robustsigma.engine.validation import fail
from robustsigma.lightning.batch import Batch
from robustsigma.lightning.batch_callback import BatchCallback, Network, check_network
from robustsigma.lightning.batch_images import BatchField, Images, Place, tensor_in
from robustsigma.lightning.loader_subset import LoaderSubset
from robustsigma.lightning.monitor_pictures import draw, log_picture
from robustsigma.lightning.robust_callback import stage_seed
from robustsigma.lightning.training_perturbation import evaluation_conditions


class Explained(NamedTuple):
    """The images under a condition and their attributions. B images.

    Attributes:
        images: (B, C, H, W), perturbed.
        logits: (B, K) of them.
        attribution: attribution of the label.
        values: metrics by name, (B,) or, for `converged`, one value for each walk.
    """

    images: Tensor
    logits: Tensor
    attribution: Attribution
    values: dict[str, Tensor]


class AttributionMonitor(BatchCallback):
    """Log heatmaps of fixed validation images, clean and perturbed, as a network trains.

    After the validation of every n-th epoch, the label of each image is explained under each condition. A picture shows
    images, heatmaps and their standard error over the method's paths; frames mark wrong predictions and walks that did
    not converge. Scalars are the means of what the metrics give, named like `attribution/Sigma/FGSM_converged`:

    - `insertion_minus_deletion`: higher where the heatmap ranks the pixels that decide the score first.
    - `converged`: fraction of the walks that converged.
    - `relative_stderr`: standard error over paths relative to the heatmap; for methods of several paths.
    - `iou`: overlap of the highest pixels, as many as the object has, with its mask; for images with masks.

    Every logger of the Trainer gets the scalars, and so can `ModelCheckpoint`. TensorBoard, Weights & Biases and MLflow
    get the pictures, too; for other loggers, or none, they are PNG files in `attributions/` of the log directory. The
    training is the same to the bit with and without the monitor. With several processes, all of them explain the
    images of the first one, so it works with sharded networks.

    Works with `pytorch_lightning` and `lightning`.

    Args:
        method: attribution method; None is `Sigma()`. An image costs its passes and 2 (H + 1) for the insertion and
            deletion curves, under each condition.
        conditions: perturbations of the images, by name; None is `{"clean": Identity()}`.
        mean: that the images of a batch were normalized with, a number per channel; None if they are in [0, 1].
        std: likewise.
        images: where a batch holds its images; see `RobustCallback`.
        labels: where it holds the labels.
        masks: where it holds masks of the objects, (B, H, W) or (B, 1, H, W), bool or in [0, 1]; or a function of the
            batch. None for images without masks, or for those of a `RobustDataModule`.
        net: the network that is explained: an attribute of the module, such as "ema", or a function of the module. None
            is the module itself, whose `forward` takes normalized images and returns logits.
        every_n_epochs: explain after the last of each n epochs, and as `RobustCallback`.
        max_images: number of images: drawn from the whole first validation loader by `seed`, or the first of `batch` or
            of a stream of unknown length.
        batch: explain these images instead: a batch as the module's steps get it.
        seed: seed of all random numbers; the same in every epoch.

    Raises:
        ValueError: an argument outside what is stated here; and in the first validation, images that are not in [0, 1]
            after un-normalization, or a batch without images, labels or masks in these places.

    Example:
        >>> from robustsigma import FGSM, Identity, Sigma
        >>> conditions = {"clean": Identity(), "FGSM": FGSM(8 / 255)}
        >>> monitor = AttributionMonitor(Sigma(paths=4), conditions, every_n_epochs=5)
        >>> trainer = Trainer(callbacks=[monitor])  # doctest: +SKIP
    """

    def __init__(
        self,
        method: Attributor | None = None,
        conditions: Mapping[str, Perturbation] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        images: Place = 0,
        labels: Place = 1,
        masks: Place | None = None,
        net: Network = None,
        every_n_epochs: int = 1,
        max_images: int = 8,
        batch: Any = None,
        seed: int = 0,
    ) -> None:
        validation.optional("method", method, Attributor)
        self.method = method or Sigma()
        self.conditions = evaluation_conditions("conditions", conditions)
        options: dict[str, Any] = {"every_n_epochs": every_n_epochs, "max_images": max_images, "seed": seed}
        super().__init__(mean=mean, std=std, images=images, labels=labels, **options)
        self.masks = None if masks is None else BatchField("masks", masks)
        self.net = check_network("net", net)
        self.batch = batch

    def _reset(self) -> None:
        super()._reset()
        self._fixed: tuple[Tensor, ...] | None = None  # images, labels and, where there are any, masks
        self._parts: list[tuple[Tensor, ...]] = []  # the same of each batch, of which images are drawn
        self._drawn: LoaderSubset | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the images of an earlier run."""
        self._reset()
        if stage == "fit":
            self._check_monitors(trainer, f"attribution/{type(self.method).__name__}/")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Free memory."""
        self._reset()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the images that are drawn, before the step may change the batch."""
        if not (self._fixed is None and self.batch is None and dataloader_idx == 0 and self._is_due(trainer)):
            return
        if batch_idx == 0:
            self._drawn, self._parts = self._spread(trainer)[0], []
        assert self._drawn is not None
        rows = self._drawn.rows(len(tensor_in(batch, self.images)))
        if batch_idx == 0 or len(rows):  # the first batch shows what is wrong with a setting
            parts = self._parts_of(batch, trainer, pl_module)
            self._parts.append(tuple(part[rows.to(part.device)] for part in parts))

    def _parts_of(self, batch: Any, trainer: Any, module: Any) -> tuple[Tensor, ...]:
        masks = None if self.masks is None else self.masks.get(batch)
        if isinstance(batch, Batch):  # of a RobustDataModule, perturbed by its first condition
            split = getattr(getattr(trainer, "datamodule", None), "split", None)
            data = split("val") if split is not None and masks is None and self.batch is None else None
            if data is not None and not isinstance(data, IterableDataset):
                masks = load_masks(data, batch.indices.tolist())
            batch = Batch(batch.images if batch.info.clean is None else batch.info.clean, batch.labels, batch.indices)
        classifier = self._classifier(module, "net", self.net)
        found: Images = self._read(batch, classifier, "val")
        parts = [found.pixels.clamp(0, 1), found.labels]
        if masks is not None:
            masks = torch.as_tensor(masks).to(found.pixels)
            parts.append(masks[:, 0] if masks.ndim == 4 else masks)
        return tuple(part.detach() for part in parts)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Explain the images and log what is found."""
        if not self._is_due(trainer):
            return
        images, labels, *masks = self._fixed = self._fixed or self._first(trainer, pl_module)
        classifier, own = self._classifier(pl_module, "net", self.net), getattr(pl_module, "classifier", None)
        if self.net is self.mean is self.std is None and isinstance(own, Classifier):
            classifier = own  # it knows the mean color, from which curves start
        # A network may draw from the global generators.
        with temporary_seed(self.seed), gathered(pl_module.modules()), self._passes(pl_module, "net", classifier):
            found = {
                name: self._explain(classifier, images, labels, masks[0] if masks else None, name)
                for name in self.conditions
            }
        method = type(self.method).__name__
        for name, explained in found.items():
            for quantity, values in explained.values.items():
                known = values.double()[values.isfinite()]
                if len(known):
                    key = f"attribution/{method}/{name}_{quantity}"
                    pl_module.log(key, float(known.mean()), sync_dist=True)
        folder = trainer.log_dir or trainer.default_root_dir  # all processes have to ask for it
        if trainer.is_global_zero:
            log_picture(trainer, folder, method, draw(method, found, labels, masks[0] if masks else None))

    def _first(self, trainer: Any, module: Any) -> tuple[Tensor, ...]:
        """Return the images that are explained from now on, in every process those of the first."""
        if self.batch is not None:
            batch = trainer.strategy.batch_to_device(self.batch, module.device)
            self._parts = [self._parts_of(batch, trainer, module)]
        parts, self._parts = self._parts, []
        found = tuple(torch.cat(column)[: self.max_images].cpu() for column in zip(*parts, strict=True))
        if trainer.world_size > 1:
            found = trainer.strategy.broadcast(found)
        if not found or not len(found[0]):
            raise fail("batch", "images to explain, as the first validation loader has none", "None")
        return tuple(part.to(module.device) for part in found)

    def _explain(
        self, classifier: Classifier, clean: Tensor, labels: Tensor, masks: Tensor | None, name: str
    ) -> Explained:
        seeds = noise.seeds(self.seed, clean)  # the same under each condition
        images = self.conditions[name](classifier, clean, labels, seed=stage_seed(self.seed, "val", name))
        attribution = self.method(classifier, images, labels, seed=seeds)
        context = MetricContext(classifier, images, labels, masks=masks, seed=seeds)
        values = {
            "insertion_minus_deletion": InsertionDeletion()(context, attribution).values["difference"],
            "converged": attribution.converged[attribution.walked],
            **RelativeStandardError()(context, attribution).values,
        }
        if masks is not None:
            values["iou"] = Localization()(context, attribution).values["iou"]
        return Explained(images, context.logits, attribution, values)
