"""What the processes of the tests do: the same as one process would, each on its share."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import multiprocessing, nn
from torchmetrics import Metric

from robustsigma import FGSM, GaussianNoise, Identity, Mixture, MixtureComponent, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.engine.metrics import rmse
from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.lightning import AugmentationStatistics, LitClassifier, RobustDataModule

SOURCE = Baggage(size=16, train=41, val=5, test=23)  # odd counts: uneven last batches
WALK = Sigma(alpha=0.03, beta=0.1, objective="logit", paths=1, max_steps=6)
PERTURBATION = Mixture(
    [
        MixtureComponent(SigmaSample(WALK, cache=SampleCache(max_age=2)), 0.6),
        MixtureComponent(FGSM(0.03, random_start=True), 0.2),
    ]
)
CONDITIONS = {
    "clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.02), "sigma": SigmaSample(WALK)
}  # fmt: skip
BATCH, EPOCHS = 8, 3


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


def fit_and_test(rank: int, world: int, folder: Path) -> None:
    """Train with augmentation and a sample cache, test under every condition, and write what came of it."""
    torch.default_generator.manual_seed(0)
    # Without BatchNorm, whose statistics are each process's own.
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    model = LitClassifier(net, mean=[0.5], std=[0.25], optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    data = RobustDataModule(
        SOURCE, train_perturbation=PERTURBATION, conditions=CONDITIONS, batch_size=BATCH // world, seed=3
    )
    seen, recorder, statistics = Seen(), PredictionRecorder(), AugmentationStatistics()
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto",
        precision="64-true", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[seen, recorder, statistics],
        plugins=[LightningEnvironment()], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    found = {
        "seen": seen.images,
        "padding": seen.padding,
        "weights": {name: p.detach() for name, p in model.named_parameters()},
        "caches": data.sample_caches.state_dict(),
        "outcomes": recorder.outcomes,
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "totals": vars(statistics.totals),
    }
    torch.save(found, folder / f"{world}-{rank}.pt")


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
