"""RobustCallback and AttributionMonitor in two processes, under DDP and FSDP2 and under both Lightning packages."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import same_numbers_in_a_step, together
from pictures import MEAN, QUIET, STD, Pictures, normalize
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from robustsigma import FGSM, GaussianNoise, Identity, IntegratedGradients, Mixture
from robustsigma.lightning import AttributionMonitor, RobustCallback

RUNS = {"ddp": "pytorch_lightning", "fsdp2": "lightning.pytorch"}


def module_of(package: Any) -> Any:
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            torch.default_generator.manual_seed(0)
            # Without BatchNorm, whose statistics are each process's own.
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3))
            self.given: dict[tuple[int, int], torch.Tensor] = {}

        def configure_model(self):
            if self.device_mesh is not None and not hasattr(self.net, "reshard"):
                fully_shard(self.net[0])
                fully_shard(self.net)

        def forward(self, images):
            return self.net(images)

        def training_step(self, batch, batch_idx):
            for image, number in zip(batch[0], batch[2].tolist(), strict=True):
                self.given[self.current_epoch, number] = image
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


class Numbered(Pictures):
    def __getitem__(self, index):
        return *super().__getitem__(index), index


def fit(rank: int, world: int, strategy: str, folder: Path) -> None:
    """Train; one process accumulates over the batches that two would have."""
    package = import_module(RUNS.get(strategy, "pytorch_lightning"))

    options = {**QUIET, "logger": False, "enable_checkpointing": False, "max_epochs": 2, "default_root_dir": folder}
    options["use_distributed_sampler"] = False  # which shuffles
    if world > 1:
        sharded = package.strategies.ModelParallelStrategy(world, 1)
        options |= {"devices": world, "strategy": sharded if strategy == "fsdp2" else strategy}
    else:
        options["accumulate_grad_batches"] = 2
    conditions = {"clean": Identity(), "noise": GaussianNoise(0.2), "FGSM": FGSM(0.05)}
    train = Mixture({FGSM(0.05, random_start=True): 0.4, GaussianNoise(0.1): 0.4})
    module, callback = module_of(package), RobustCallback(train, conditions, mean=MEAN, std=STD, max_images=14)
    drawn = normalize(torch.rand(4, 3, 8, 8)), torch.arange(4) % 3  # other images in each process
    own = (normalize(Pictures(4).images), torch.arange(4) % 3) if rank == 0 else drawn
    options_of_both = {"mean": MEAN, "std": STD, "batch": own, "max_images": 3}
    monitor = AttributionMonitor(IntegratedGradients(steps=4), {"FGSM": FGSM(0.05)}, **options_of_both)
    trainer = package.Trainer(callbacks=[callback, monitor], **options)
    if world == 1:
        order = [image for start in (0, 12) for half in (0, 1) for image in range(start + half, start + 12, 2)]
    else:
        order = range(rank, 24, 2)
    train_loader = DataLoader(Numbered(24, 0, normalize), 6, sampler=order)
    val_loader = DataLoader(Pictures(20, 1, normalize), 12 // world, sampler=range(rank, 20, world))
    with same_numbers_in_a_step("robust_callback", world):
        trainer.fit(module, train_loader, val_loader)
    weights = [getattr(each, "full_tensor", lambda each=each: each)() for each in module.parameters()]
    found = module.given, dict(trainer.callback_metrics), [each.detach() for each in weights]
    torch.save(found, folder / f"{strategy}_{rank}.pt")


@pytest.mark.slow
@pytest.mark.third_party_rng
@pytest.mark.parametrize("strategy", RUNS)
def test_two_processes_do_what_one_does(strategy, tmp_path):
    pytest.importorskip(RUNS[strategy])
    fit(0, 1, "auto", tmp_path)
    together(fit, 2, strategy, tmp_path)
    (given, logged, weights), (first, mine, _), (second, theirs, others) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("auto_0", f"{strategy}_0", f"{strategy}_1")
    )
    assert mine == theirs
    assert {name: float(value) for name, value in mine.items()} == pytest.approx(
        {name: float(value) for name, value in logged.items()}, rel=1e-4
    )
    assert len(logged) == 3 + 2
    assert len([*tmp_path.rglob("*.png")]) == 2  # of two epochs, and both runs write the same; the first process alone
    assert sorted([*first, *second]) == sorted(given)
    for number, image in {**first, **second}.items():
        torch.testing.assert_close(image, given[number], rtol=0, atol=1e-5)
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=1e-6)
