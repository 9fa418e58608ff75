"""The data module that perturbs batches on their device, against the network that is being trained or evaluated."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from robustsigma.data.dataset_spec import DatasetSpec, Split
from robustsigma.data.datasets import CheckedStream
from robustsigma.data.loading import Augmentation, check_augmentation, fingerprint
from robustsigma.engine import global_rng, noise
from robustsigma.engine.device import wait
from robustsigma.engine.network_state import gathered
from robustsigma.engine.perturbations import Identity, Perturbation
from robustsigma.engine.serialization import safe_in_checkpoints
from robustsigma.engine.validation import fail, integer, optional
from robustsigma.lightning.attacked_network import AttackedNetworkCheck, classifier_of
from robustsigma.lightning.batch import Batch, BatchInfo
from robustsigma.lightning.batch_norm import explain_single_value
from robustsigma.lightning.guarded_data_module import GuardedDataModule
from robustsigma.lightning.keyed_datasets import KeyedStream, apart
from robustsigma.lightning.loaders import KeySampler, ResumableLoader, make_loader, worker_options
from robustsigma.lightning.sample_caches import SampleCaches
from robustsigma.lightning.strategies import (
    check_strategy,
    continue_training,
    data_rank,
    gather_in_evaluations,
    keep_samples,
    kept_samples,
)
from robustsigma.lightning.training_perturbation import Ramp, batch_number, evaluation_conditions, has_cache

safe_in_checkpoints(type(Path()))  # data modules have folders among their arguments


class RobustDataModule(GuardedDataModule):
    """Perturbs batches on their device, against the network as it is at that moment.

    Training batches go through `train_perturbation`; `val_dataloader` and `test_dataloader` return one loader for each
    condition. An image's randomness derives from (seed, stage, condition, epoch, its index in the split), so results
    depend neither on the batch size nor on the number of workers or processes. In training, each batch has fixed
    numbers of images for the components of a `Mixture`: their shares, rounded up or down by its number. The network is
    frozen meanwhile: eval mode, no updates of BatchNorm statistics, no gradients of parameters.

    Pass the module to the Trainer as its `datamodule`: batches of a loader that is passed instead are clean, with a
    warning. The LightningModule needs an attribute `classifier`, a `robustsigma.Classifier`. If its steps use another
    network, such as an average of its weights, a warning says so. `predict` uses the clean images of the test split.

    Cached SIGMA samples keep the augmentation with which they were made. Those of `last.ckpt` are in
    `last.ckpt.samples/`; see `robustsigma.lightning.sample_caches.SampleCaches`.

    A training resumes from any checkpoint, also in the middle of an epoch, as if it had not been interrupted. The
    global generators, from which dropout draws, are restored (those of the first process). If the dataset has changed,
    cached samples are dropped with a warning.

    Several processes (DDP, or FSDP2 by `ModelParallelStrategy`) divide the images equally, an image always to the same
    process, which keeps its cached samples. They train as one process that accumulates gradients over their batches,
    but for dropout, BatchNorm and the numbers of perturbed images, which all processes share. From the end of an
    epoch a training may resume with another number of them. Sharded parameters are gathered once for each batch.

    Args:
        dataset: where images come from; `robustsigma.data.Datasets` wraps torch datasets.
        train_perturbation: perturbation of training batches; use `Mixture` to perturb only a share of the images. None
            leaves them clean.
        conditions: perturbation of each test condition, by its name; None is {"clean": Identity()}.
        val_conditions: the same for validation.
        ramp: growth of the training perturbation over the first epochs; None uses full strength from the start.
        augment: transforms of the training images in the loading processes: an `Albumentations` of the images as the
            dataset has them, or a `RandomResizedCrop` of the full images.
        sampler: sampler that draws the indices of each epoch's training images, in place of a shuffle, such as torch's
            `WeightedRandomSampler`; seeded by `seed` and the epoch. It draws for all processes, which divide its draws.
            An image that is drawn several times is augmented and perturbed differently each time.
        batch_size: number of images in a batch, in every stage.
        drop_last: whether to leave out the last training batch of an epoch if it is smaller than the others. BatchNorm
            may fail on a batch of one image, except in `LitClassifier`.
        num_workers: number of loading processes; None is 0, or, for 512 and more image files, the number of cores, at
            most 8.
        prefetch_factor: number of batches that each loading process loads in advance; None is 2.
        persistent_workers: whether loading processes outlive an epoch; None is yes in training only.
        limits: largest number of images by split ("train", "val", "test"), drawn by the seed.
        seed: seed of the order, the augmentation and the perturbations.

    Raises:
        ValueError: an argument of another type or range.

    Example:
        >>> from robustsigma import FGSM, Identity, Mixture
        >>> from robustsigma.data import Baggage
        >>> conditions = {"clean": Identity(), "FGSM": FGSM(8 / 255)}
        >>> data = RobustDataModule(Baggage(), train_perturbation=Mixture({FGSM(): 0.5}), conditions=conditions)
    """

    reports_network: ClassVar[bool] = False  # whether a report flags an unsound network, in place of a warning

    def __init__(
        self,
        dataset: DatasetSpec,
        *,
        train_perturbation: Perturbation | None = None,
        conditions: Mapping[str, Perturbation] | None = None,
        val_conditions: Mapping[str, Perturbation] | None = None,
        ramp: Ramp | None = None,
        augment: Augmentation | None = None,
        sampler: Sampler | None = None,
        batch_size: int = 128,
        drop_last: bool = False,
        num_workers: int | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool | None = None,
        limits: Mapping[Split, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(dataset, DatasetSpec):
            raise fail("dataset", "a robustsigma.data.DatasetSpec, such as Datasets(…)", type(dataset).__name__)
        optional("train_perturbation", train_perturbation, Perturbation)
        optional("ramp", ramp, Ramp)
        check_augmentation(augment)
        optional("sampler", sampler, Sampler)
        optional("limits", limits, Mapping)
        if ramp is not None:
            ramp.check(train_perturbation)
        self.dataset, self.train_perturbation = dataset, train_perturbation
        self.conditions = evaluation_conditions("conditions", conditions)
        self.val_conditions = evaluation_conditions("val_conditions", val_conditions)
        self.ramp, self.augment = ramp, augment
        self.batch_size, self.drop_last = integer("batch_size", batch_size, 1), drop_last
        self.loading = worker_options(num_workers, prefetch_factor, persistent_workers)
        for split in limits or ():
            DatasetSpec.check_split(split)
        self.limits = {split: integer(f"limits[{split!r}]", most, 1) for split, most in (limits or {}).items()}
        self.seed, self.sampler = integer("seed", seed, 0), sampler
        if isinstance(sampler, DistributedSampler):
            raise fail("sampler", "one of all images, which are then divided among processes", type(sampler).__name__)
        if sampler is not None and "train" in self.limits:
            raise fail("limits", "none for train, where a sampler draws the images", self.limits["train"])
        self._reset()

    def _reset(self) -> None:
        self.sample_caches = SampleCaches(self.seed)
        self._training: ResumableLoader | None = None
        self._resumed: dict[str, Any] = {}  # what `load_state_dict` was given
        self._images: dict[str, Any] | None = None  # fingerprint of the training images
        self._attacked = AttackedNetworkCheck()

    def setup(self, stage: str) -> None:
        """Forget an earlier training."""
        if stage == "fit":
            self._reset()
        self._attacked = AttackedNetworkCheck()
        if self.trainer is not None:
            check_strategy(self.trainer)
            gather_in_evaluations(self.trainer)
            if stage == "fit" and has_cache(self.train_perturbation):
                keep_samples(self)

    def teardown(self, stage: str) -> None:
        """Check the last observed step."""
        self._attacked.finish()

    def on_exception(self, exception: BaseException) -> None:
        """Leave no hooks at the network, and say what to do about a batch of one image."""
        explain_single_value(exception)
        self._attacked.remove_hooks()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch and the states of the global generators; samples are in other files."""
        state: dict[str, Any] = {"generators": global_rng.states()}
        if self._training is not None:
            state["loader"] = self._training.state_dict()
            if has_cache(self.train_perturbation) and self.trainer is not None:
                state["images"] = self._fingerprint(self._training)
                state["sample_caches"] = self.trainer.global_step
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state."""
        self._resumed = dict(state_dict)
        self._resume()
        if self.trainer is not None and "generators" in self._resumed:
            continue_training(self.trainer, self._resumed.pop("generators"))

    def prepare_data(self) -> None:
        """Download missing data, in one process."""
        _ = self.dataset.classes

    def split(self, name: Split) -> Dataset[Any]:
        """Return the images of a split; override it to use others."""
        return self.dataset.split(name)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of training images, in a new order in each epoch."""
        self._training, self._images = self._loader(self.split("train"), "train"), None
        sampler = self._training.sampler
        self.sample_caches.owned = sampler.owned if isinstance(sampler, KeySampler) else None
        self._resume()
        return self._training

    def _resume(self) -> None:
        """Apply a checkpoint's state once the training loader exists; the strategy decides which comes first."""
        if self._training is None:
            return
        # Lightning restores a loader too, but not if the optimizer asked for the number of batches before.
        if "loader" in self._resumed:
            self._training.load_state_dict(self._resumed.pop("loader"))
        images, step = (self._resumed.pop(name, None) for name in ("images", "sample_caches"))
        if step is None or self.trainer is None:
            return
        if self._fingerprint(self._training) != images:
            warnings.warn("ckpt_path: its sample cache is of other training images; it is dropped", stacklevel=2)
            return
        shared, rank = self.sample_caches.owned is not None, data_rank(self.trainer)
        files = kept_samples(self.trainer.ckpt_path, step, *rank, shared=shared)
        self.sample_caches.load(files, self.train_perturbation or Identity())

    def _fingerprint(self, training: ResumableLoader) -> dict[str, Any]:
        keyed: Any = training.dataset
        if isinstance(keyed, KeyedStream):
            return {"stream": keyed.stream.name}  # which may never end
        if self._images is None:
            self._images = fingerprint(keyed.dataset)
        return self._images

    @torch.inference_mode(False)  # a dataset may keep tensors that are trained on later
    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader for each validation condition, or none in a training without validation images."""
        asked = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        if "val" not in self.dataset.splits and not asked:
            # Lightning warns after this has returned, so the filter has to stay.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        dataset = self.split("val")
        return [self._loader(dataset, "val") for _ in self.val_conditions]

    @torch.inference_mode(False)
    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader for each test condition."""
        dataset = self.split("test")
        return [self._loader(dataset, "test") for _ in self.conditions]

    @torch.inference_mode(False)
    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the clean test images."""
        found = self._loader(self.split("test"), "test")
        found.on_start = None
        return found

    def _loader(self, dataset: Dataset[Any], split: Split) -> ResumableLoader:
        train, trainer = split == "train", self.trainer
        if isinstance(dataset, IterableDataset):
            dataset = self._stream(dataset, split)
        found = make_loader(
            dataset,
            augment=self.augment if train else None,
            seed=self.seed,
            shuffle=train,
            limit=self.limits.get(split),
            sampler=self.sampler if train else None,
            ranks=data_rank(trainer),
            batch_size=self.batch_size,
            drop_last=train and self.drop_last,
            **self.loading,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )
        found.limited = trainer is not None and isinstance(trainer.limit_train_batches, int)
        found.on_start = partial(self._start, split, found.dataset)
        return found

    def _stream(self, dataset: IterableDataset[Any], split: Split) -> CheckedStream:
        if not isinstance(dataset, CheckedStream):
            dataset = CheckedStream(dataset, split, len(self.dataset.classes), self.dataset.shape)
        if split == "train" and has_cache(self.train_perturbation) and not dataset.has_keys:
            expected = "a stream of (image, label, key) whose keys are integers from 0 on, for a SampleCache"
            raise fail("train", expected, "items without such keys")
        return dataset

    def _start(self, split: Split, keyed: Any, resumed: int) -> bool:
        """Start an epoch; return whether this data module gets its batches, and warn if it should and does not."""
        trainer = self.trainer
        if split == "train" and isinstance(keyed, KeyedStream):
            # A Trainer that resumes from the end of an epoch starts the next one's loader before it counts the epoch.
            progress: Any = trainer and trainer.fit_loop.epoch_progress.current
            keyed.set_epoch(max(resumed, progress.processed if progress else 0))
        if trainer is not None and trainer.state.status == TrainerStatus.RUNNING:
            hooks = trainer._data_connector._datahook_selector  # a Trainer's `datamodule` may be that of its last run
            if hooks is None or hooks.datamodule is self:
                return hooks is not None
        train = {"train": self.train_perturbation or Identity()}
        perturbations = {"train": train, "val": self.val_conditions, "test": self.conditions}[split]
        if any(not isinstance(each, Identity) for each in perturbations.values()):
            warnings.warn(
                f"{split}_dataloader: its images are clean here. A RobustDataModule perturbs batches as the Trainer's "
                "datamodule: pass it itself, as in trainer.fit(model, datamodule=data), not its loader.",
                stacklevel=3,
            )
        return False

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Perturb a batch that has arrived on its device."""
        trainer = self.trainer
        self._attacked.finish()
        if trainer is None or trainer.predicting:
            return batch
        if isinstance(batch, Batch) and batch.images.dtype == torch.uint8:  # which a precision has left as it is
            batch = trainer.precision_plugin.convert_input(batch.with_pixels())
        if not isinstance(batch, Batch):
            raise fail("batch", "a Batch of the loaders of a RobustDataModule; override `split`", type(batch).__name__)
        classifier = classifier_of(trainer.lightning_module)
        if self.reports_network:
            classifier.checked = True
        # In an evaluation the epoch is always 0, so that accuracies of two epochs do not differ by their noise.
        epoch = trainer.current_epoch if trainer.training else 0
        if trainer.training:
            step, stage, name, perturbation = "training", "train", "train", self.train_perturbation or Identity()
            perturbation = perturbation if self.ramp is None else self.ramp.at(perturbation, epoch)
        else:
            step, stage = ("test", "test") if trainer.testing else ("validation", "val")
            conditions = self.conditions if trainer.testing else self.val_conditions
            name, perturbation = list(conditions.items())[dataloader_idx]
        seeds = apart(noise.image_seeds(self.seed, stage, name, epoch, batch.indices), batch.repeats)
        wait(batch.images.device)  # the time of the step before is not that of the perturbation
        start, stats, module = time.perf_counter(), None, trainer.lightning_module
        # Once for each batch in every process, also where no image needs the network.
        with gathered(module.modules()):
            if trainer.training:
                made, stats = self.sample_caches.apply(
                    perturbation, classifier, batch, seeds=seeds, epoch=epoch, step=batch_number(trainer)
                )
            else:
                made = perturbation(classifier, batch.images, batch.labels, seed=seeds, return_info="search")
            info = BatchInfo(name, batch.images, made, time.perf_counter() - start, stats)
            if perturbation.depends_on_model:
                # Of a training one step is observed, of evaluations one in each epoch.
                when = 0 if trainer.training else trainer.current_epoch
                exact = str(trainer.precision)[:2] in ("32", "64")
                self._attacked.observe(module, classifier, made.images, step, when, exact=exact)
        return replace(batch, images=made.images, info=info)
