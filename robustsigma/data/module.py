"""The only place where a perturbation meets Lightning."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from inspect import currentframe
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus
from torch.utils.data import DataLoader, Dataset

from robustsigma.data.attacked import AttackedNetwork
from robustsigma.data.banks import SampleCaches, unbanked
from robustsigma.data.dataset_spec import Batch, DatasetSpec, Split
from robustsigma.data.datasets import Datasets
from robustsigma.data.gathering import Share
from robustsigma.data.loading import KeyedDataset, KeySampler, ResumableLoader, loader, subsample
from robustsigma.data.ramp import Ramp
from robustsigma.data.transforms import Albumentations
from robustsigma.device import wait
from robustsigma.engine import noise, validation
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import Identity, Perturbation, global_rng
from robustsigma.engine.serialization import safe_in_checkpoints
from robustsigma.runs.fingerprint import items

safe_in_checkpoints(type(Path()))  # data modules have folders among their arguments


class RobustDataModule(pl.LightningDataModule):
    """Batches perturbed on their device, against the network as it is at that moment.

    Training batches go through `train_perturbation`; `val_dataloader` and `test_dataloader` return one loader for
    each condition. An image's randomness derives from (seed, stage, condition, epoch, its index in the split), so
    that results depend neither on the batch size nor on the number of workers or processes. The network is frozen
    meanwhile: eval mode, running BatchNorm statistics, no dropout, no parameter gradients.

    The LightningModule has an attribute `classifier`, a `robustsigma.Classifier`.

    Where the training perturbation has a `SigmaSample` with a bank, its samples are kept here by the image's index,
    and in checkpoints. An image then keeps its part of a `Mixture` for some epochs, see
    `robustsigma.data.banks.SampleCaches`.
    With an `augment`, a sample of the bank is that of the image as it was augmented when it was made.

    A training resumed from a checkpoint, also from one of the middle of an epoch, continues with the batches that were
    left, as if it had not been interrupted: the global generators, from which dropout draws, continue too (those of the
    first process, where there are several). Another dataset drops the bank of the checkpoint with a warning.

    Batches are perturbed where the module is the Trainer's `datamodule`; a loader that is handed to the Trainer by
    itself has clean ones, and warns. `predict` sees the images of the test split as they are. A network that returns
    probabilities is refused, as attacks see little of its gradients. Where the module's steps use another network than
    its `classifier`, such as an average of its weights, a warning says so.

    Several processes (DDP) train on the batches that one process would have with their batch sizes together, each image
    of an epoch once, and each keeps the samples of all. The numbers are those of that one process, unless the network
    has BatchNorm whose statistics are not shared (`sync_batchnorm` of the Trainer) or dropout.

    Args:
        dataset: where images come from, a `robustsigma.data.DatasetSpec`; `robustsigma.data.Datasets` makes one of
            torch's datasets.
        train_perturbation: of training batches; use `Mixture` to perturb a share of each. None leaves them clean.
        conditions: name and perturbation of each test condition; None is {"clean": Identity()}.
        val_conditions: the same for validation.
        ramp: lets the training perturbation grow over the first epochs; None has it whole from the start.
        augment: geometric and other transforms of the training images, on the CPU workers.
        batch_size: images in a batch of any stage.
        drop_last: leave out the last training batch of an epoch if it is smaller than the others. BatchNorm may fail on
            a batch of one image, but in `LitClassifier`, which takes such a batch.
        num_workers: loading processes; the embedded datasets lie in memory and need none.
        limits: most images by split ("train", "val", "test"), drawn by the seed; others are used whole.
        seed: of the order, the augmentation and the perturbations.
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
        augment: Albumentations | None = None,
        batch_size: int = 128,
        drop_last: bool = False,
        num_workers: int = 0,
        limits: Mapping[Split, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(dataset, DatasetSpec):
            raise validation.fail(
                "dataset", "a robustsigma.data.DatasetSpec, such as Datasets(…)", type(dataset).__name__
            )
        for name, value, kind in (
            ("train_perturbation", train_perturbation, Perturbation),
            ("ramp", ramp, Ramp),
            ("augment", augment, Albumentations),
            ("limits", limits, Mapping),
        ):
            validation.optional(name, value, kind)
        self.dataset = dataset
        self.train_perturbation = train_perturbation
        self.conditions = _conditions("conditions", conditions)
        self.val_conditions = _conditions("val_conditions", val_conditions)
        self.ramp = ramp
        if ramp is not None:
            ramp.check(train_perturbation)
        self.augment = augment
        self.batch_size = validation.integer("batch_size", batch_size, 1)
        self.drop_last = drop_last
        self.num_workers = validation.integer("num_workers", num_workers, 0)
        self.limits = dict(limits or {})
        for split, most in self.limits.items():
            DatasetSpec.check_split(split)
            self.limits[split] = validation.integer(f"limits[{split!r}]", most, 1)
        self.seed = validation.integer("seed", seed, 0)
        self.banks = SampleCaches(self.seed)
        self._training: ResumableLoader | None = None
        self._resumed: dict[str, Any] | None = None
        self._data: dict[str, Any] | None = None  # fingerprint of the training images of the bank
        self._attacked, self._watched = AttackedNetwork(), ("", -1)

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep a subclass's arguments as Lightning does, but for datasets in memory, which fit in no checkpoint."""
        caller = currentframe()
        frame = frame or (caller.f_back if caller else None)
        given = frame.f_locals if frame else {}
        held = [name for name, value in given.items() if isinstance(value, Datasets | Dataset)]
        ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
        super().save_hyperparameters(*args, ignore=[*ignored, *held], frame=frame, logger=logger)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainer" and type(value).__module__.startswith("lightning."):
            raise _wrong_package(f"a Trainer of the package {type(value).__module__.split('.')[0]}")
        super().__setattr__(name, value)

    def __iter__(self) -> NoReturn:
        # A Trainer of the package `lightning` takes a data module of pytorch_lightning for a loader, and tries this.
        raise _wrong_package("iteration over the data module itself, as by a Trainer of the package lightning")

    def setup(self, stage: str) -> None:
        """Forget another training."""
        if stage == "fit":
            self.banks, self._training, self._resumed, self._data = SampleCaches(self.seed), None, None, None
        self._attacked, self._watched = AttackedNetwork(), ("", -1)

    def teardown(self, stage: str) -> None:
        """Judge the last step that was watched."""
        self._attacked.finish()

    def on_exception(self, exception: BaseException) -> None:
        """Leave nothing at the network."""
        self._attacked.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the kept samples, how far the epoch is and where the global generators are, for a checkpoint."""
        parts = {"banks": self.banks.state_dict(), "loader": self._training.state_dict() if self._training else {}}
        if parts["banks"] and self._training:
            parts["data"], parts["made_by"] = self._fingerprint(self._training), self.banks.made_by
        return {**{name: part for name, part in parts.items() if part}, "generators": global_rng.states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.banks.load_state_dict(state_dict.get("banks", {}), state_dict.get("made_by"))
        self._resumed, self._data = state_dict.get("loader"), state_dict.get("data")
        generators = state_dict.get("generators")
        if generators is not None and self.trainer is not None:
            # Not at once: what Lightning prepares until then may draw.
            restore = pl.callbacks.LambdaCallback(on_train_start=lambda *_: _restore(generators))
            self.trainer.callbacks.append(restore)  # type: ignore[attr-defined]

    def prepare_data(self) -> None:
        """Download what is missing, in one process."""
        _ = self.dataset.classes

    def split(self, name: Split) -> Dataset[Any]:
        """Return the images of a split; override to train or test on others."""
        return self.dataset.split(name)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of training images, shuffled anew in each epoch."""
        self._training = self._loader(self.split("train"), "train")
        # Lightning tells a loader itself, but not where the optimizer asked how many batches there are.
        resumed, self._resumed = self._resumed, None
        before, self._data = self._data, None
        if before is not None and self._fingerprint(self._training) != before:
            self.banks, self._data = SampleCaches(self.seed), None
            warnings.warn("ckpt_path: the checkpoint's bank is of other training images; it is dropped", stacklevel=2)
        if resumed:
            self._training.load_state_dict(resumed)
        return self._training

    def _fingerprint(self, training: ResumableLoader) -> dict[str, Any]:
        if self._data is None:
            keyed = training.dataset
            self._data = items(keyed.dataset if isinstance(keyed, KeyedDataset) else keyed)
        return self._data

    @torch.inference_mode(False)  # what a dataset keeps of its first use may be trained on later
    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader for each validation condition, or none where there are no images to validate a training on.

        Raises:
            ValueError: no such images, where the Trainer was asked to validate and for nothing else.
        """
        asked = self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING
        if "val" not in self.dataset.splits and not asked:
            # Else Lightning would ask whether no loader at all was meant; after this has returned, so the filter stays.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        dataset = self.split("val")
        return [self._loader(dataset, "val") for _ in self.val_conditions]

    @torch.inference_mode(False)
    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return a loader for each test condition.

        Raises:
            ValueError: no images to test on.
        """
        dataset = self.split("test")
        return [self._loader(dataset, "test") for _ in self.conditions]

    @torch.inference_mode(False)
    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the test images, which stay as they are.

        Raises:
            ValueError: no such images.
        """
        found = self._loader(self.split("test"), "test")
        found.before = None
        return found

    def _loader(self, dataset: Dataset[Any], split: Split) -> ResumableLoader:
        return self._keyed_loader(dataset, self._chosen(dataset, split), split)

    def _chosen(self, dataset: Dataset[Any], split: Split) -> list[int]:
        return subsample(len(dataset), self.limits.get(split), self.seed)  # type: ignore[arg-type]

    def _keyed_loader(self, dataset: Dataset[Any], indices: list[int], split: Split) -> ResumableLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        train = split == "train"
        keyed = KeyedDataset(dataset, self.augment if train else None, self.seed)
        sampler = KeySampler(indices, shuffle=train, seed=self.seed, rank=rank, world=world)
        pinned = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        found = loader(
            keyed, sampler, self.batch_size, self.num_workers, pinned=pinned, drop_last=train and self.drop_last
        )
        found.before = partial(self._warn_of_clean, split)
        return found

    def _warn_of_clean(self, split: Split) -> None:
        """Warn where the batches of a loader that is to be perturbed do not come back here."""
        trained = {} if self.train_perturbation is None else {"": self.train_perturbation}
        of_split = {"val": self.val_conditions, "test": self.conditions, "train": trained}
        trainer = self.trainer
        if trainer is not None and trainer.state.status == TrainerStatus.RUNNING:
            hooks = trainer._data_connector._datahook_selector  # a Trainer's `datamodule` may be that of its last run
            if hooks is None or hooks.datamodule is self:
                return
        if any(not isinstance(each, Identity) for each in of_split[split].values()):
            warnings.warn(
                f"{split}_dataloader: its images are clean here. A RobustDataModule perturbs batches as the Trainer's "
                "datamodule: pass it itself, as in trainer.fit(model, datamodule=data), not its loader.",
                stacklevel=3,
            )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Perturb a batch that has arrived on the device."""
        trainer = self.trainer
        self._attacked.finish()
        if trainer is None or trainer.predicting:
            return batch
        if not isinstance(batch, Batch):
            told = "a Batch of the loaders of a RobustDataModule; override `split` to give it other images"
            raise validation.fail("batch", told, type(batch).__name__)
        if trainer.training:
            stage, name, perturbation, epoch = "train", "train", self.train_perturbation, trainer.current_epoch
        else:
            stage, conditions = ("test", self.conditions) if trainer.testing else ("val", self.val_conditions)
            name, perturbation = list(conditions.items())[dataloader_idx]
            epoch = 0  # else accuracies of two epochs would differ by their noise as well
        classifier = getattr(trainer.lightning_module, "classifier", None)
        if not isinstance(classifier, Classifier):
            raise validation.fail("model.classifier", "a robustsigma.Classifier", type(classifier).__name__)
        seeds = noise.image_seeds(self.seed, stage, name, epoch, batch.indices)
        perturbation = perturbation or Identity()
        if trainer.training and self.ramp is not None:
            perturbation = self.ramp.at(perturbation, epoch)
        if self.reports_network:
            classifier.checked = True
        x, y, indices = batch.images, batch.labels, batch.indices
        cache_stats = None
        wait(x.device)  # for the step before, whose time this is not; perturbing waits for it too
        start = time.perf_counter()
        if trainer.training:
            share = Share(trainer.global_rank, trainer.world_size)
            made, cache_stats = self.banks.apply(
                perturbation,
                classifier,
                x,
                y,
                seeds=seeds,
                indices=indices,
                epoch=epoch,
                share=share,
                counted=batch.counted,
            )
        else:
            made = perturbation.apply(classifier, x, y, seed=seeds)
        seconds = time.perf_counter() - start
        watched = stage, 0 if trainer.training else trainer.current_epoch
        if perturbation.depends_on_model and watched != self._watched:
            self._watched = watched
            step = {"train": "training", "val": "validation"}.get(stage, stage)
            exact = str(trainer.precision).startswith(("32", "64"))
            self._attacked.watch(trainer.lightning_module, classifier, made.images, step, exact=exact)
        return batch._replace(
            images=made.images, clean=x, made=made, condition=name, seconds=seconds, cache_stats=cache_stats
        )


def _restore(generators: dict[str, Any]) -> None:
    """Let the generators go on, once: the callback stays with a Trainer that may train something else."""
    if generators:
        global_rng.set_states(generators)
    generators.clear()


def _wrong_package(got: str) -> ValueError:
    expected = "a Trainer of the package pytorch_lightning (import pytorch_lightning as pl; pl.Trainer(…))"
    return validation.fail("trainer", expected, got)


def _conditions(name: str, given: Mapping[str, Perturbation] | None) -> dict[str, Perturbation]:
    if given is not None:
        validation.mapping(name, given)
    conditions: dict[str, Perturbation] = {"clean": Identity()} if given is None else dict(given)
    if not conditions:
        raise validation.fail(name, "at least one condition", "none")
    for key, perturbation in conditions.items():
        if not isinstance(perturbation, Perturbation):
            raise validation.fail(f"{name}[{key!r}]", "a Perturbation", type(perturbation).__name__)
    return {key: unbanked(perturbation) for key, perturbation in conditions.items()}
