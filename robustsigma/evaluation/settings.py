"""What an evaluation is: data, network, training, regimes and conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robustsigma.data.baggage import Baggage
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.data.loading import Augmentation, check_augmentation
from robustsigma.engine import validation
from robustsigma.engine.perturbations import GaussianNoise, Identity, Perturbation
from robustsigma.models import Architecture


@dataclass(frozen=True)
class Training(validation.Settings):
    """How the base model is trained: AdamW with a cosine schedule.

    Args:
        epochs: passes over the training images. 0 uses a network that was trained elsewhere as it is; it must have all
            classes of the dataset.
        batch_size: batch size used for training.
        lr: learning rate at the start.
        weight_decay: weight decay of AdamW.
        augment: clean transforms of the training images, an `Albumentations` or a `RandomResizedCrop`, or None.

    Example:
        >>> Evaluation(training=Training(epochs=10, lr=0.001))
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-3
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        check_augmentation(self.augment)
        _check_optimization(self, least_epochs=0)


@dataclass(frozen=True)
class TrainerOptions(validation.Settings):
    """How a training runs: arguments of `pytorch_lightning.Trainer`.

    On one device, ranks share the trainings: each makes whole ones. On several, all ranks make each training together,
    so there must be as many as devices (`--devices`, torchrun, SLURM); batch sizes are then those of one device.

    Args:
        devices: devices of a training on each machine.
        num_nodes: machines of a training.
        strategy: such as "ddp".
        precision: such as "bf16-mixed"; None is single precision.
        accelerator: "gpu", "cpu" or "auto".
    """

    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | None = None
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        validation.integer("devices", self.devices, 1)
        validation.integer("num_nodes", self.num_nodes, 1)

    @property
    def world_size(self) -> int:
        """Devices on all machines."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class Retraining(validation.Settings):
    """How the base model is trained further, and on which samples.

    Two protocols. "retrain" (Henry et al., 2025, section 6): `samples` training images are perturbed once against
    the base model and added, with their labels, to the training images. "on_the_fly": a `share` of each batch is
    perturbed against the model while it trains.

    Args:
        retrain: perturbation of each regime of the first protocol. An `Identity` is the control: equally long
            training without perturbed samples.
        on_the_fly: perturbation of each regime of the second protocol.
        samples: perturbed images of the first protocol.
        share: share of perturbed images in a batch, in the protocol `on_the_fly`.
        epochs: number of epochs in both protocols.
        batch_size: batch size in both protocols.
        lr: learning rate at the start.
        weight_decay: weight decay of AdamW.

    Example:
        >>> Retraining(retrain={"clean": Identity(), "FGSM": FGSM(2 / 255)}, samples=500)
    """

    retrain: Mapping[str, Perturbation] = field(default_factory=dict)
    on_the_fly: Mapping[str, Perturbation] = field(default_factory=dict)
    samples: int = 500
    share: float = 0.25
    epochs: int = 3
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        _check_perturbations("retrain", self.retrain)
        _check_perturbations("on_the_fly", self.on_the_fly)
        validation.integer("samples", self.samples, 1)
        validation.number("share", self.share, 0, 1, open_low=True)
        _check_optimization(self, least_epochs=1)


@dataclass(frozen=True)
class Checks(validation.Settings):
    """Further measurements that tell how far the attacks of the matrix can be believed, on a few of its test images.

    They change no cell, only its flags: a run resumes under other checks, which are then recomputed.

    Args:
        images: test images at most, drawn at random from those of the matrix; 0 leaves all of these checks out. The
            outputs and gradients of the network are looked at in any case.
        convergence: also attack with twice the steps of each PGD.
        noise: also add Gaussian noise of the same RMSE as each attack's samples.
        queries: forward passes of a search without gradients in the ball of each FGSM and PGD; 0 leaves it out.
        curves: also attack at a quarter and half of the eps of each FGSM and PGD, and at its doubles until
            accuracy falls to chance or the ball holds every image.

    Example:
        >>> Evaluation(checks=Checks(images=128, curves=False))
    """

    images: int = 64
    convergence: bool = True
    noise: bool = True
    queries: int = 100
    curves: bool = True

    def __post_init__(self) -> None:
        validation.integer("images", self.images, 0)
        validation.integer("queries", self.queries, 0)


@dataclass(frozen=True)
class Sweep(validation.Settings):
    """Which standard deviations of Gaussian noise are tried as training noise before the matrix is made.

    Each regime whose perturbation is a `GaussianNoise` is trained with each of them and evaluated on images that no
    training of the sweep saw, never on test images; the best then takes the place of the regime's own. So others are
    compared with tuned Gaussian noise (Rusak et al., 2020; Kireev et al., 2021).

    Args:
        stds: at least two, in pixel units of [0, 1].
        images: most images to evaluate on: of the validation split, or else held out of the training images.
        by: what is highest for the best one, over the columns that are not transfer: "mean", the accuracy averaged over
            them, or "worst", the share of images classified correctly under all of them. The smallest wins a tie.

    Example:
        >>> noise = Retraining(on_the_fly={"noise": GaussianNoise(0.1)})
        >>> Evaluation(retraining=noise, sweep=Sweep(stds=[0.1, 0.2, 0.3]))
    """

    stds: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
    images: int = 400
    by: Literal["mean", "worst"] = "mean"

    def __post_init__(self) -> None:
        validation.several("stds", self.stds)
        for std in self.stds:
            validation.number("stds", std, 0, open_low=True)
        if len(self.stds) < 2 or len(set(self.stds)) != len(self.stds):
            raise validation.fail("stds", "at least two, each once", repr(list(self.stds)))
        validation.integer("images", self.images, 1)


def _check_perturbations(name: str, given: Mapping[str, Perturbation]) -> None:
    validation.mapping(name, given)
    for key, perturbation in given.items():
        validation.instance(f"{name}.{key}", perturbation, Perturbation)


def _check_optimization(plan: Training | Retraining, *, least_epochs: int) -> None:
    validation.integer("epochs", plan.epochs, least_epochs)
    validation.integer("batch_size", plan.batch_size, 1)
    validation.number("lr", plan.lr, 0, open_low=True)
    validation.number("weight_decay", plan.weight_decay, 0)


@dataclass(frozen=True)
class Evaluation(validation.Settings):
    """Settings of an evaluation: every regime under every condition, each training repeated over seeds.

    Args:
        dataset: the dataset.
        architecture: the network.
        training: how the base model is trained.
        retraining: how every other model is trained, starting from the base model.
        trainer: devices, strategy and precision of every training.
        conditions: perturbation of the test images, by name. Attacks are reported twice: adaptive, made against the
            model under test, and transfer, made once against the base model.
        checks: checks of whether the attacks are strong enough.
        sweep: sweep of the training noise, made before all else; None trains on the noise as it is given.
        seeds: seeds of the trainings, or their number: 3 is [0, 1, 2]. Test images and their noise do not depend on
            it.
        mean: value per channel that is subtracted from images in [0, 1]. None is 0.5 for a network that is trained here
            from scratch; for one with `architecture.weights`, the value in their file if it was saved here, or the one
            published with a network of torchvision or timm. For any other it is required.
        std: value per channel that is divided by; None is 0.25 for a network trained from scratch, else as for `mean`.
        test_images: largest number of test images, drawn at random; None uses all.
        eval_batch_size: batch size used for evaluation.
        num_workers: number of loading processes.

    Example:
        >>> Evaluation(test_images=100, seeds=[0, 1, 2])
    """

    dataset: DatasetSpec = field(default_factory=Baggage)
    architecture: Architecture = field(default_factory=Architecture)
    training: Training = field(default_factory=Training)
    retraining: Retraining = field(default_factory=Retraining)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    conditions: Mapping[str, Perturbation] = field(default_factory=lambda: {"clean": Identity()})
    checks: Checks = field(default_factory=Checks)
    sweep: Sweep | None = None
    seeds: int | Sequence[int] = (0,)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    test_images: int | None = None
    eval_batch_size: int = 128
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("dataset", DatasetSpec), ("architecture", Architecture), ("training", Training),
                           ("retraining", Retraining), ("trainer", TrainerOptions), ("checks", Checks)):  # fmt: skip
            validation.instance(name, getattr(self, name), kind)
        _check_perturbations("conditions", self.conditions)
        if isinstance(self.seeds, int):
            validation.integer("seeds", self.seeds, 1)
            object.__setattr__(self, "seeds", tuple(range(self.seeds)))
        validation.several("seeds", self.seeds)
        for seed in self.each_seed:
            validation.integer("seeds", seed, 0)
        if not self.each_seed or len(set(self.each_seed)) != len(self.each_seed):
            raise validation.fail("seeds", "at least one, each once", repr(list(self.each_seed)))
        for name in (*self.conditions, *self.retraining.retrain, *self.retraining.on_the_fly):
            if not name.replace("_", "").replace("-", "").isalnum():
                raise validation.fail("name of a condition or regime", "letters, digits, - and _", repr(name))
        retraining = self.retraining
        for place, names in (("conditions", self.conditions), ("retraining.retrain", retraining.retrain),
                             ("retraining.on_the_fly", retraining.on_the_fly)):  # fmt: skip
            validation.distinct(place, names)
        if not any(isinstance(condition, Identity) for condition in self.conditions.values()):
            raise validation.fail("conditions", "an Identity among them, beside which the others are read", "none")
        if not self.training.epochs and not self.architecture.trained:
            told = "at least 1 for a network without weights (architecture.weights: a file, or published)"
            raise validation.fail("training.epochs", told, 0)
        if self.sweep is not None and not self.swept:
            raise validation.fail("sweep", "a GaussianNoise among the regimes, whose std it decides", "none")
        if self.test_images is not None:
            validation.integer("test_images", self.test_images, 1)
        validation.integer("eval_batch_size", self.eval_batch_size, 1)
        validation.integer("num_workers", self.num_workers, 0)

    @property
    def each_seed(self) -> Sequence[int]:
        """The seeds, one for each training."""
        assert not isinstance(self.seeds, int)
        return self.seeds

    @property
    def swept(self) -> list[tuple[str, str]]:
        """Protocol and name of each regime whose standard deviation the sweep decides."""
        if self.sweep is None:
            return []
        regimes = [(protocol, getattr(self.retraining, protocol)) for protocol in ("retrain", "on_the_fly")]
        return [(protocol, name) for protocol, of in regimes for name, p in of.items() if isinstance(p, GaussianNoise)]
