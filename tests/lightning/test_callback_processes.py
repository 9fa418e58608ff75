"""RobustCallback and AttributionMonitor in two processes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pictures import MEAN, QUIET, STD, Pictures, normalize
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import multiprocessing, nn
from torch.utils.data import DataLoader

from robustsigma import FGSM, GaussianNoise, Identity, IntegratedGradients, Mixture
from robustsigma.lightning import AttributionMonitor, RobustCallback


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.default_generator.manual_seed(0)
        # Without BatchNorm, whose statistics are each process's own.
        self.net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
        self.given: dict[int, torch.Tensor] = {}

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        for image, number in zip(batch[0], batch[2].tolist(), strict=True):
            self.given[number] = image
        return 0 * torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Numbered(Pictures):
    def __getitem__(self, index):
        return *super().__getitem__(index), index


def fit(rank: int, world: int, port: int, folder: Path) -> None:
    class Environment(LightningEnvironment):
        creates_processes_externally = True

        def world_size(self):
            return world

        def global_rank(self):
            return rank

        local_rank = node_rank = lambda self: rank

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    options = {**QUIET, "logger": False, "enable_checkpointing": False, "max_epochs": 1, "default_root_dir": folder}
    if world > 1:
        options |= {"devices": world, "strategy": "ddp", "plugins": [Environment()]}
    conditions = {"clean": Identity(), "noise": GaussianNoise(0.2), "FGSM": FGSM(0.05)}
    train = Mixture({FGSM(0.05, random_start=True): 0.4, GaussianNoise(0.1): 0.4})
    module, callback = Module(), RobustCallback(train, conditions, mean=MEAN, std=STD, max_images=14)
    drawn = normalize(torch.rand(4, 3, 8, 8)), torch.arange(4) % 3  # other images in each process
    own = (normalize(Pictures(4).images), torch.arange(4) % 3) if rank == 0 else drawn
    options_of_both = {"mean": MEAN, "std": STD, "batch": own, "max_images": 3}
    monitor = AttributionMonitor(IntegratedGradients(steps=4), {"FGSM": FGSM(0.05)}, **options_of_both)
    trainer = pl.Trainer(callbacks=[callback, monitor], **options)
    data = Numbered(24, 0, normalize), Pictures(20, 1, normalize)
    trainer.fit(module, *(DataLoader(each, 12 // world, shuffle=False) for each in data))
    torch.save((module.given, dict(trainer.callback_metrics)), folder / f"{world}_{rank}.pt")


@pytest.mark.slow
@pytest.mark.third_party_rng
def test_two_processes_do_what_one_does(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for world in (1, 2):
        multiprocessing.spawn(fit, (world, port, tmp_path), nprocs=world)
    (given, logged), (first, mine), (second, theirs) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1")
    )
    assert mine == theirs
    assert {name: float(value) for name, value in mine.items()} == pytest.approx(
        {name: float(value) for name, value in logged.items()}
    )
    assert len(logged) == 3 + 2
    assert len([*tmp_path.rglob("*.png")]) == 1  # the same file of both runs, written by the first process alone
    assert sorted([*first, *second]) == sorted(given)
    for number, image in {**first, **second}.items():
        torch.testing.assert_close(image, given[number], rtol=0, atol=1e-6)
