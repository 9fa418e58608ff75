"""In the style of lightning-hydra-template: `self.net`, shared torchmetrics, Normalize in the transform."""

from functools import partial

import torch
from pictures import MEAN, QUIET, STD, Pictures, small_net
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import Normalize

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


class PicturesDataModule(LightningDataModule):
    def setup(self, stage=None):
        self.train, self.val, self.test = (
            Pictures(n, seed, Normalize(MEAN, STD)) for seed, n in enumerate((24, 13, 9))
        )

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=5)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=5)


class PicturesLitModule(LightningModule):
    def __init__(self, net, optimizer):
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.criterion = torch.nn.CrossEntropyLoss()
        self.train_acc, self.val_acc, self.test_acc = (MulticlassAccuracy(3, average="micro") for _ in range(3))
        self.val_loss, self.val_acc_best = MeanMetric(), MaxMetric()

    def forward(self, x):
        return self.net(x)

    def on_train_start(self):
        self.val_loss.reset()
        self.val_acc.reset()
        self.val_acc_best.reset()

    def model_step(self, batch):
        x, y = batch
        logits = self.forward(x)
        return self.criterion(logits, y), torch.argmax(logits, dim=1), y

    def training_step(self, batch, batch_idx):
        loss, preds, targets = self.model_step(batch)
        self.train_acc(preds, targets)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, preds, targets = self.model_step(batch)
        self.val_loss(loss)
        self.val_acc(preds, targets)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self):
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True)

    def test_step(self, batch, batch_idx):
        _, preds, targets = self.model_step(batch)
        self.test_acc(preds, targets)
        self.log("test/acc", self.test_acc, on_step=False, on_epoch=True)

    def configure_optimizers(self):
        return self.hparams.optimizer(self.trainer.model.parameters())


def main(folder):
    module, data = PicturesLitModule(small_net(), partial(torch.optim.Adam, lr=0.02)), PicturesDataModule()
    callbacks = [ModelCheckpoint(folder, monitor="val/acc", mode="max")]
    attack = FGSM(0.05)  # robustsigma
    callbacks.append(RobustCallback(Mixture({attack: 0.5}), CONDITIONS, mean=MEAN, std=STD))  # robustsigma
    callbacks.append(EarlyStopping("val/FGSM_acc", mode="max", patience=5))  # robustsigma
    trainer = Trainer(max_epochs=2, callbacks=callbacks, default_root_dir=folder, logger=False, **QUIET)
    trainer.fit(module, data)
    return trainer, module, data.val_dataloader()
