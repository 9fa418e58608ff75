"""A stream for validation, a weighted sampler for training, and batches of a class of their own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pictures import QUIET, Pictures, small_net
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler, default_collate

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


@dataclass(frozen=True)
class Item:
    pixels: torch.Tensor
    label: torch.Tensor


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Pictures(13, 1))


def collate(items):
    images, labels = default_collate(items)
    return Item(images.to(memory_format=torch.channels_last), labels)


class Streamed(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def training_step(self, batch):
        return F.cross_entropy(self(batch.pixels), batch.label)

    def validation_step(self, batch):
        accuracy = (self(batch.pixels).argmax(1) == batch.label).float().mean()
        self.log("val/acc", accuracy, batch_size=len(batch.label))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def main(folder):
    callbacks = []
    robust = RobustCallback(Mixture({FGSM(0.05): 0.5}), CONDITIONS, images="pixels", labels="label")  # robustsigma
    callbacks.append(robust)  # robustsigma
    module, val = Streamed(), DataLoader(Stream(), batch_size=5, collate_fn=collate)
    sampler = WeightedRandomSampler(torch.arange(1.0, 25.0), 24)
    train = DataLoader(Pictures(24), batch_size=6, sampler=sampler, collate_fn=collate)
    options = {"enable_checkpointing": False, "logger": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, **options, **QUIET)
    trainer.fit(module, train, val)
    return trainer, module, val
