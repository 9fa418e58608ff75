"""A loader that resumes in the middle of an epoch, and a checkpoint every two steps."""

import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures, small_net
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchvision.transforms import Normalize

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


class ResumableLoader:
    """Batches of a new order in each epoch, with the state that Lightning saves."""

    def __init__(self, data, batch_size):
        self.data, self.batch_size, self.epoch, self.batch = data, batch_size, 0, 0

    def __len__(self):
        return len(self.data) // self.batch_size

    def __iter__(self):
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.epoch))
        while self.batch < len(self):
            rows = order[self.batch * self.batch_size :][: self.batch_size].tolist()
            self.batch += 1
            images, labels = zip(*(self.data[row] for row in rows), strict=True)
            yield torch.stack(images), torch.tensor(labels)
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state):
        self.epoch, self.batch = state["epoch"], state["batch"]


class Resumable(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(folder, checkpoint=None):
    callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)]
    train = Mixture({FGSM(0.05, random_start=True): 0.4, GaussianNoise(0.1): 0.4})  # robustsigma
    callbacks.append(RobustCallback(train, CONDITIONS, mean=MEAN, std=STD))  # robustsigma
    transform = Normalize(MEAN, STD)
    module, val = Resumable(), DataLoader(Pictures(13, 1, transform), batch_size=5)
    trainer = Trainer(max_epochs=3, callbacks=callbacks, logger=False, default_root_dir=folder, **QUIET)
    trainer.fit(module, ResumableLoader(Pictures(24, 0, transform), 6), val, ckpt_path=checkpoint)
    return trainer, module, val
