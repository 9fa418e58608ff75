"""What the processes of the tests do: the same as one process would, each on its share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytorch_lightning as pl
import torch
from pictures import Pictures
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import IterableDataset, Sampler
from torchmetrics import Metric

from robustsigma import FGSM, GaussianNoise, Identity, Mixture, Sigma, SigmaSample
from robustsigma.data import Baggage, Datasets
from robustsigma.engine.metrics import rmse
from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.lightning import AugmentationStatistics, LitClassifier, RobustDataModule, SafetensorsExport
from robustsigma.lightning.loaders import KeySampler

SOURCE = Baggage(size=16, train=41, val=5, test=25)  # uneven last batches, and numbers of batches in tests
WALK = Sigma(alpha=0.03, beta=0.1, objective="logit", paths=1, max_steps=6)
PERTURBATION = Mixture({SigmaSample(WALK, cache=SampleCache(max_age=2)): 0.6, FGSM(0.03, random_start=True): 0.2})
CONDITIONS = {
    "clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.02), "sigma": SigmaSample(WALK)
}  # fmt: skip
BATCH, EPOCHS = 4, 3  # of each process
BASE = Pictures(17)
STRATEGIES = ("ddp", "fsdp2", "fsdp2-full")


class PerSample(Metric):
    """Values of each image, gathered over processes and put in the order of the images' indices."""

    full_state_update = False

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = ("indices", *names)
        for name in self.names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, **values: torch.Tensor) -> None:
        for name in self.names:
            getattr(self, name).append(values[name].detach())

    def compute(self) -> dict[str, torch.Tensor]:
        columns = {name: getattr(self, name) for name in self.names}
        joined = {name: torch.cat(v) if isinstance(v, list) else v for name, v in columns.items()}
        _, first = np.unique(joined["indices"].numpy(), return_index=True)  # padding repeats images
        return {name: value[torch.from_numpy(first)] for name, value in joined.items()}


class PredictionRecorder(pl.Callback):
    """Records label, prediction and RMSE of every test image; several processes gather theirs at the end."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.metrics = {name: PerSample("labels", "predictions", "steps", "rmse") for name in CONDITIONS}
        self.outcomes: dict[str, dict[str, torch.Tensor]] = {}

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        found = {"labels": batch.labels, "predictions": outputs.argmax(1), "steps": batch.info.perturbed.steps}
        found["rmse"] = rmse(batch.images, batch.info.clean)
        self.metrics[batch.info.condition].update(indices=batch.indices, **found)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.outcomes = {name: metric.compute() for name, metric in self.metrics.items()}


class Seen(pl.Callback):
    """Keeps what every training step was given, except padding."""

    def __init__(self) -> None:
        self.images: dict[tuple[int, int], torch.Tensor] = {}
        self.padding = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for image, index, is_padding in zip(
            batch.images, batch.indices.tolist(), batch.is_padding.tolist(), strict=True
        ):
            if is_padding:
                self.padding += 1
                continue
            assert (trainer.current_epoch, index) not in self.images, "an image was trained on twice in an epoch"
            self.images[trainer.current_epoch, index] = image.clone()


class Collectives(TorchDispatchMode):
    """Counts collectives."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "c10d"
        return func(*args, **(kwargs or {}))


class Counting(RobustDataModule):
    """Counts the collectives of each batch that it perturbs."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        with Collectives() as counted:
            found = super().on_after_batch_transfer(batch, dataloader_idx)
        self.collectives = getattr(self, "collectives", {"training": [], "test": []})
        self.collectives["training" if self.trainer.training else "test"].append(counted.count)
        return found


class Interleaved(Sampler):
    """Draws in each epoch what processes have of it, in turn, a batch of each: for one process to do the same."""

    def __init__(self, batch_size: int, world: int, seed: int) -> None:
        self.batch_size, self.world, self.seed = batch_size, world, seed
        self.data: Any = None

    def __len__(self) -> int:
        return SOURCE.train

    def __iter__(self) -> Iterator[int]:
        shares = []
        for rank in range(self.world):
            sampler = KeySampler(range(SOURCE.train), shuffle=True, seed=self.seed, rank=rank, world_size=self.world)
            sampler.set_epoch(self.data.trainer.current_epoch)
            shares.append([key.image for key in sampler if not key.is_padding])
        for start in range(0, len(shares[0]), self.batch_size):
            for share in shares:
                yield from share[start : start + self.batch_size]


class Accumulating(LitClassifier):
    """Has the loss of several processes in one process that accumulates gradients, also where one has no image left."""

    def _loss_scale(self, size: int, batch_idx: int) -> float:
        return float(self.trainer.accumulate_grad_batches if self.trainer.is_last_batch else 1)


def same_numbers_in_a_step(module: str, world: int) -> Any:
    """Give batches that one process accumulates the same numbers of perturbed images, as several processes have."""
    target = f"robustsigma.lightning.{module}.batch_number"
    return nullcontext() if world > 1 else mock.patch(target, lambda trainer: trainer.global_step)


def fit_and_test(rank: int, world: int, folder: Path, strategy: str = "auto", resumed: Path | None = None) -> None:
    """Train with augmentation and a sample cache, test under every condition, and write what came of it.

    One process accumulates over the batches that two would have.
    """
    torch.default_generator.manual_seed(0)
    # Without BatchNorm, whose statistics are each process's own.
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), Block(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    kind = LitClassifier if world > 1 else Accumulating
    model = kind(net.double(), mean=[0.5], std=[0.25], optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    sampler = None if world > 1 else Interleaved(BATCH, 2, 3)
    data = Counting(
        SOURCE, train_perturbation=PERTURBATION, conditions=CONDITIONS, batch_size=BATCH, seed=3, sampler=sampler
    )
    if sampler is not None:
        sampler.data = data
    seen, recorder, statistics = Seen(), PredictionRecorder(), AugmentationStatistics()
    export = SafetensorsExport(str(folder / f"{strategy}.safetensors"))
    saves = ModelCheckpoint(folder / strategy, "{step}", every_n_train_steps=8, save_top_k=1)  # in mid-epoch
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=world, strategy=_strategy(strategy, world),
        accumulate_grad_batches=1 if world > 1 else 2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[seen, recorder, statistics, saves, export],
        plugins=[LightningEnvironment()], default_root_dir=folder, use_distributed_sampler=False,
    )  # fmt: skip
    with same_numbers_in_a_step("data_module", world):
        trainer.fit(model, data, ckpt_path=resumed)
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    sharded = [name for name, each in parameters.items() if hasattr(each, "full_tensor")]
    logged = dict(trainer.callback_metrics)
    weights = {name: each.full_tensor() if name in sharded else each for name, each in parameters.items()}
    trainer.test(model, data, verbose=False)
    found = {
        "seen": seen.images,
        "padding": seen.padding,
        "weights": weights,
        "sharded": sharded,
        "collectives": data.collectives,
        "caches": {name: cache.state_dict() for name, cache in data.sample_caches.caches.items()},
        "outcomes": recorder.outcomes,
        "metrics": {k: float(v) for k, v in {**logged, **trainer.callback_metrics}.items()},
        "totals": vars(statistics.totals),
    }
    torch.save(found, folder / f"{strategy}{'' if resumed is None else '-resumed'}-{rank}.pt")


class Block(nn.Module):
    """A block, which FSDP2 shards by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.pad(self.layers(x), (1, 1, 1, 1))


def _strategy(name: str, world: int) -> Any:
    if name.startswith("fsdp2"):
        return ModelParallelStrategy(world, 1, save_distributed_checkpoint=name == "fsdp2")
    return name


def fit_under_strategies(rank: int, world: int, folder: Path) -> None:
    """Train under each strategy, and resume from the middle of an epoch."""
    for strategy in STRATEGIES:
        fit_and_test(rank, world, folder, strategy)
        (path,) = (folder / strategy).glob("*.ckpt")
        fit_and_test(rank, world, folder, strategy, path)


class Odd(IterableDataset):
    """A stream whose first process has 3 batches of an epoch, and whose second has 2."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int, int]]:
        for index in range(self.rank, 17, 2):
            yield *BASE[index], index


def fit_unequal_streams(rank: int, world: int, folder: Path) -> None:
    """Train on streams of unequal lengths for a number of steps, and write the weights."""
    torch.default_generator.manual_seed(0)
    data = RobustDataModule(Datasets(Odd(rank), classes=["a", "b", "c"]), train_perturbation=FGSM(0.1), batch_size=4)
    model = LitClassifier(nn.Sequential(nn.Flatten(), nn.Linear(BASE.images[0].numel(), 3)), schedule="constant")
    strategy = DDPStrategy(timeout=timedelta(seconds=60))  # an error where processes wait for each other
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_epochs=-1, max_steps=7, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        plugins=[LightningEnvironment()],
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 7
    torch.save((model.state_dict(), float(trainer.callback_metrics["train_loss"])), folder / f"{rank}.pt")


def together(job: Any, world: int, *arguments: Any) -> None:
    """Run a job in so many processes, as a launcher starts them; their first error is raised."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    multiprocessing.start_processes(_one, (job, world, port, arguments), world, start_method="spawn")


def _one(rank: int, job: Any, world: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    which = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in which.items()})
    job(rank, world, *arguments)
