"""OneCycle, and mixup inside the training step."""

import torch
import torch.nn.functional as F
from pictures import QUIET, Pictures, small_net
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


class Mixup(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net((x - 0.45) / 0.25)

    def training_step(self, batch, batch_idx):
        x, y = batch
        share, order = torch.rand(()), torch.randperm(len(x))
        logits = self(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[order])

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(folder):
    callbacks = []
    callbacks.append(RobustCallback(Mixture({FGSM(0.05): 0.5}), CONDITIONS))  # robustsigma
    module, val = Mixup(), DataLoader(Pictures(13, 1), batch_size=5)
    options = {"accumulate_grad_batches": 2, "enable_checkpointing": False, "logger": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, **options, **QUIET)
    trainer.fit(module, DataLoader(Pictures(24), batch_size=6, shuffle=True), val)
    return trainer, module, val
