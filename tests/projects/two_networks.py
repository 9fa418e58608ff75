"""Manual optimization of two networks: a classifier and a decoder of its logits."""

import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures, small_net
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Normalize

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


class TwoNetworks(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.student = small_net()
        self.decoder = nn.Linear(3, 3 * 8 * 8)

    def training_step(self, batch, batch_idx):
        x, y = batch
        first, second = self.optimizers()
        logits = self.student(x)
        first.zero_grad()
        self.manual_backward(F.cross_entropy(logits, y))
        first.step()
        second.zero_grad()
        self.manual_backward(F.mse_loss(self.decoder(logits.detach()), x.flatten(1)))
        second.step()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.student(x)
        self.log("val/acc", (logits.argmax(1) == y).float().mean())
        self.log("val/error", F.mse_loss(self.decoder(logits), x.flatten(1)))

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), lr=0.01) for net in (self.student, self.decoder)]


def main(folder):
    callbacks = []
    robust = RobustCallback(Mixture({FGSM(0.05): 0.5}), CONDITIONS, mean=MEAN, std=STD, net="student")  # robustsigma
    callbacks.append(robust)  # robustsigma
    transform = Normalize(MEAN, STD)
    module, val = TwoNetworks(), DataLoader(Pictures(13, 1, transform), batch_size=5)
    options = {"enable_checkpointing": False, "logger": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, **options, **QUIET)
    trainer.fit(module, DataLoader(Pictures(24, 0, transform), batch_size=6, shuffle=True), val)
    return trainer, module, val
