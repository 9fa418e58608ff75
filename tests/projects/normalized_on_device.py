"""Images are uint8 until the data module's `on_after_batch_transfer` flips and normalizes them."""

import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures, normalize, small_net
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


def to_uint8(image):
    return (image * 255).round().to(torch.uint8)


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Pictures(24, 0, to_uint8), batch_size=6, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Pictures(13, 1, to_uint8), batch_size=5)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, labels = batch
        images = normalize(images.float() / 255)
        return (images.flip(3) if self.trainer.training else images), labels


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val/acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def main(folder):
    callbacks = []
    callbacks.append(RobustCallback(Mixture({FGSM(0.05): 0.5}), CONDITIONS, mean=MEAN, std=STD))  # robustsigma
    module, data = Module(), Data()
    options = {"enable_checkpointing": False, "logger": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, **options, **QUIET)
    trainer.fit(module, datamodule=data)
    return trainer, module, [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
