"""AttributionMonitor: what is measured, which logger gets what, and that training does not notice."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures, normalize, small_net
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, Identity, IntegratedGradients, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.data.loading import load_masks, subsample
from robustsigma.engine import noise
from robustsigma.engine.metrics import InsertionDeletion, Localization, MetricContext, RelativeStandardError
from robustsigma.lightning import AttributionMonitor, LitClassifier, RobustDataModule
from robustsigma.lightning.robust_callback import stage_seed
from robustsigma.models import network

pytestmark = pytest.mark.third_party_rng
WALK = Sigma(objective="logit", alpha=0.02, beta=0.1, paths=2, max_steps=5)
CONDITIONS = {"clean": Identity(), "FGSM": FGSM(0.05)}
OPTIONS = {"enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1, **QUIET}


def module_of(package=pl):
    class Module(package.LightningModule):
        """Dropout and batch statistics: what draws or runs in between shows in the weights."""

        def __init__(self):
            super().__init__()
            torch.default_generator.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Dropout(0.2), small_net())

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def loader(count=13, seed=0, transform=normalize):
    return DataLoader(Pictures(count, seed, transform), 5)


def fit(monitor, folder, logger=False, package=pl, module=None, val=None, **options):
    module = module or module_of(package)
    callbacks = [] if monitor is None else monitor
    trainer = package.Trainer(callbacks=callbacks, logger=logger, default_root_dir=folder, **{**OPTIONS, **options})
    trainer.fit(module, loader(), loader(seed=1) if val is None else val)
    return trainer, module


def monitor(method=WALK, conditions=CONDITIONS, **options):
    return AttributionMonitor(method, conditions, **{"mean": MEAN, "std": STD, "max_images": 7, **options})


def as_read(images):
    """Return images as they are after normalization and back: seeds depend on every bit."""
    mean, std = (torch.tensor(each).reshape(-1, 1, 1) for each in (MEAN, STD))
    return (normalize(images) * std + mean).clamp(0, 1)


def expected(net, images, labels, masks=None, **statistics):
    """Return what is logged of some images, by a loop of its own."""
    classifier, found, seeds = Classifier(net, **statistics), {}, noise.seeds(0, images)
    for name, condition in CONDITIONS.items():
        made = condition(classifier, images, labels, seed=stage_seed(0, "val", name))
        attribution = WALK(classifier, made, labels, seed=seeds)
        context = MetricContext(classifier, made, labels, masks=masks, seed=seeds)
        values = {
            "insertion_minus_deletion": InsertionDeletion()(context, attribution).values["difference"].mean(),
            "converged": attribution.converged.double().mean(),
            "relative_stderr": RelativeStandardError()(context, attribution).values["relative_stderr"].mean(),
        }
        if masks is not None:
            values["iou"] = Localization()(context, attribution).values["iou"].nanmean()
        found |= {f"attribution/Sigma/{name}_{key}": float(value) for key, value in values.items()}
    return found


def monitored(trainer):
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("attribution/")}


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_it_logs_what_a_loop_over_images_of_the_whole_loader_gives(package, tmp_path):
    trainer, module = fit(monitor(), tmp_path, package=pytest.importorskip(package))
    pictures = Pictures(13, 1)
    drawn = subsample(13, 7, 0)
    found = expected(module.net, as_read(pictures.images[drawn]), pictures.labels[drawn], mean=MEAN, std=STD)
    assert monitored(trainer) == pytest.approx(found, abs=1e-5)
    (file,) = tmp_path.rglob("*.png")
    assert file.relative_to(tmp_path) == Path("attributions/Sigma/epoch=0-step=3.png")


class WandbFake(Logger):
    """WandbLogger's interface, as far as it concerns pictures."""

    name, version = "wandb", 0

    def __init__(self):
        super().__init__()
        self.scalars, self.pictures = {}, []

    def log_metrics(self, metrics, step=None):
        self.scalars |= metrics

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_image(self, key, images, step=None, **kwargs):
        if not isinstance(images, list):
            raise TypeError(f'Expected a list as "images", found {type(images)}')
        assert not any(len(value) != len(images) for value in kwargs.values())
        self.pictures += [(key, step, Image.fromarray(image)) for image in images]


class MlflowClient:
    def __init__(self):
        self.pictures = []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
        assert run_id == "run"
        assert artifact_file.endswith(".png")
        self.pictures.append((artifact_file, Image.fromarray(image)))


class MlflowFake(Logger):
    """MLFlowLogger's interface: its experiment is a client that names the run in each call."""

    name, version, run_id = "mlflow", "run", "run"

    def __init__(self):
        super().__init__()
        self.experiment, self.scalars = MlflowClient(), {}

    def log_metrics(self, metrics, step=None):
        self.scalars |= metrics

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_every_logger_gets_scalars_and_pictures(tmp_path):
    board, table = TensorBoardLogger(tmp_path, "board"), CSVLogger(tmp_path, "table")
    wandb, mlflow = WandbFake(), MlflowFake()
    trainer, _ = fit(monitor(max_images=2), tmp_path, [board, table, wandb, mlflow], max_epochs=2)
    names = {*monitored(trainer)}
    assert len(names) == 6
    events = EventAccumulator(board.log_dir, {"images": 0}).Reload()
    assert names <= {*events.Tags()["scalars"]}
    pictures = events.Images("attribution/Sigma")
    assert [each.step for each in pictures] == [3, 6]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
    assert names <= {*Path(table.log_dir, "metrics.csv").read_text(encoding="utf-8").splitlines()[0].split(",")}
    files = sorted(file.relative_to(trainer.log_dir).as_posix() for file in tmp_path.rglob("*.png"))
    assert files == [f"attributions/Sigma/epoch={epoch}-step={step}.png" for epoch, step in ((0, 3), (1, 6))]
    assert names <= {*wandb.scalars}
    assert [(key, step) for key, step, _ in wandb.pictures] == [("attribution/Sigma", 3), ("attribution/Sigma", 6)]
    assert names <= {*mlflow.scalars}
    assert [file for file, _ in mlflow.experiment.pictures] == files
    assert min(wandb.pictures[0][2].size) > 200


def test_a_logger_of_pictures_alone_leaves_no_file(tmp_path):
    fit(monitor(max_images=1), tmp_path, TensorBoardLogger(tmp_path))
    assert not [*tmp_path.rglob("*.png")]


class Draws(torch.nn.Module):
    """A network that draws from every generator, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, images):
        random.random()
        np.random.rand()  # noqa: NPY002
        return self.net(images + 1e-4 * torch.randn(()))


@pytest.mark.parametrize("draws", [False, True])
def test_training_is_the_same_to_the_bit(draws, tmp_path):
    def weights(callback):
        module = module_of()
        if draws:
            module.net[1] = Draws()
        for seed in (random.seed, np.random.seed, torch.default_generator.manual_seed):
            seed(3)
        fit(callback, tmp_path, module=module, max_epochs=2)
        drawn = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
        assert all(each.training for each in module.net.modules())
        assert all(each.requires_grad for each in module.parameters())
        return module.state_dict(), (*drawn, [each.grad is None for each in module.parameters()])

    (plain, drawn), (watched, drawn_too) = weights(None), weights(monitor(max_images=2))
    assert all(map(torch.equal, plain.values(), watched.values()))
    assert drawn == drawn_too


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled")
def test_every_n_epochs_of_the_same_images_and_not_in_the_sanity_check(tmp_path):
    val = DataLoader(Pictures(13, 1, normalize), 5, shuffle=True)
    watched = monitor(max_images=6, every_n_epochs=2)
    seen, explain = [], watched._explain

    def spy(classifier, images, *rest):
        seen.append(images)
        return explain(classifier, images, *rest)

    watched._explain = spy
    fit(watched, tmp_path, max_epochs=4, val=val)
    assert [file.name.split("-")[0] for file in sorted(tmp_path.rglob("*.png"))] == ["epoch=1", "epoch=3"]
    assert len(seen) == 4
    assert all(torch.equal(images, seen[0]) for images in seen)


def test_a_batch_and_masks_and_a_network_by_name(tmp_path):
    pictures = Pictures(4, 3)
    masks = torch.zeros(4, 1, 8, 8)
    masks[:3, :, 2:5, 2:6] = 1  # the last one has no object
    batch = {"x": normalize(pictures.images), "y": pictures.labels, "m": masks}
    watched = monitor(batch=batch, images="x", labels="y", masks="m", net="net")
    trainer, module = fit(watched, tmp_path)
    found = expected(module.net, as_read(pictures.images), pictures.labels, masks[:, 0], mean=MEAN, std=STD)
    assert "attribution/Sigma/FGSM_iou" in found
    assert monitored(trainer) == pytest.approx(found, abs=1e-5)


def test_with_our_own_data_module_and_its_masks(tmp_path):
    source = Baggage(size=16, train=8, val=6, test=4)
    data = RobustDataModule(source, val_conditions={"noise": FGSM(0.1), "clean": Identity()}, batch_size=4)
    module = LitClassifier(network("small_cnn", 3, 5, {"width": 4}), mean=[0.5], std=[0.25])
    watched = AttributionMonitor(WALK, CONDITIONS)
    trainer = quiet_trainer(watched, default_root_dir=tmp_path)
    trainer.fit(module, data)
    images, labels = source.split("val").batch(range(6))
    masks = load_masks(source.split("val"), range(6))
    found = expected(module.classifier.net, images, labels, masks, mean=[0.5], std=[0.25])
    assert monitored(trainer) == pytest.approx(found, abs=1e-5)


def test_a_method_of_one_path_and_validate_alone(tmp_path):
    watched = monitor(IntegratedGradients(steps=2), {"clean": Identity()}, every_n_epochs=5)
    trainer = quiet_trainer(watched, default_root_dir=tmp_path)
    trainer.validate(module_of(), loader(), verbose=False)
    names = [f"attribution/IntegratedGradients/clean_{each}" for each in ("insertion_minus_deletion", "converged")]
    assert [*monitored(trainer)] == names
    assert len([*tmp_path.rglob("*.png")]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": FGSM()}, "method: expected a Attributor or None"),
        ({"conditions": {}}, "conditions: expected at least one condition, got none"),
        ({"conditions": {"a": SigmaSample}}, r"conditions\['a'\]: expected a Perturbation"),
        ({"masks": 0.5}, "masks: expected an index, a key"),
        ({"net": small_net()}, "net: expected an attribute's name or a function"),
        ({"max_images": 0}, "max_images: expected an integer of at least 1"),
        ({"every_n_epochs": 0}, "every_n_epochs: expected an integer of at least 1"),
        ({"mean": (127,)}, "mean: expected numbers for images in"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        monitor(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": None, "std": None}, "images: expected pixels in .*pass the mean and std"),
        ({"masks": 2}, "masks: expected the place of the masks in a batch, got 2"),
        (
            {"net": "nett"},
            "net: expected an attribute of Module .*: net.* got 'nett'; did you mean 'net'",
        ),
    ],
)
def test_the_first_validation_tells_a_wrong_setting(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(monitor(**options), tmp_path)


@pytest.mark.filterwarnings("ignore:Total length of")
def test_no_images(tmp_path):
    empty = [DataLoader([], 5), loader(seed=1)]
    with pytest.raises(ValueError, match="batch: expected images to explain, as the first validation loader has none"):
        fit(monitor(), tmp_path, val=empty)
