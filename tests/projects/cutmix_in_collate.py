"""CutMix in the loader's collate function: training labels are probabilities."""

import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures, small_net
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import Normalize, v2

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}
cutmix = v2.CutMix(num_classes=3)


def collate(items):
    return cutmix(*default_collate(items))


class SoftLabels(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = small_net()

    def training_step(self, batch, batch_idx):
        x, y = batch
        assert y.shape == (len(x), 3)
        return F.cross_entropy(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/acc", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main(folder):
    callbacks = []
    robust = RobustCallback(Mixture({FGSM(0.05): 0.5}), CONDITIONS, mean=MEAN, std=STD, net="model")  # robustsigma
    callbacks.append(robust)  # robustsigma
    transform = Normalize(MEAN, STD)
    module, val = SoftLabels(), DataLoader(Pictures(13, 1, transform), batch_size=5)
    train = DataLoader(Pictures(24, 0, transform), batch_size=6, shuffle=True, collate_fn=collate)
    options = {"enable_checkpointing": False, "logger": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, **options, **QUIET)
    trainer.fit(module, train, val)
    return trainer, module, val
