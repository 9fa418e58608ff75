"""Batches are dictionaries, the network is timm's, its weights are averaged (EMA), the precision is bf16-mixed."""

import timm
import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import Normalize

from robustsigma import FGSM, GaussianNoise, Identity, Mixture
from robustsigma.lightning import RobustCallback

CONDITIONS = {"clean": Identity(), "noise": GaussianNoise(0.1), "FGSM": FGSM(0.05)}


def collate(items):
    images, labels = default_collate(items)
    return {"image": images, "target": labels, "source": ["camera"] * len(labels)}


class Timm(LightningModule):
    def __init__(self):
        super().__init__()
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
        self.backbone = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.backbone(batch["image"]), batch["target"])

    def validation_step(self, batch, batch_idx):
        target = batch.pop("target")
        accuracy = (self.backbone(batch["image"]).argmax(1) == target).float().mean()
        self.log("val/acc", accuracy, batch_size=len(target))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.005)


def main(folder):
    callbacks = [EMAWeightAveraging(decay=0.8)]
    places = {"images": "image", "labels": "target", "mean": MEAN, "std": STD}  # robustsigma
    robust = RobustCallback(Mixture({FGSM(0.05): 0.5}), CONDITIONS, net="backbone", **places)  # robustsigma
    callbacks.append(robust)  # robustsigma
    transform = Normalize(MEAN, STD)
    module, val = Timm(), DataLoader(Pictures(13, 1, transform), batch_size=5, collate_fn=collate)
    train = DataLoader(Pictures(24, 0, transform), batch_size=6, shuffle=True, collate_fn=collate)
    options = {"enable_checkpointing": False, "logger": False, "default_root_dir": folder, "precision": "bf16-mixed"}
    trainer = Trainer(max_epochs=2, callbacks=callbacks, **options, **QUIET)
    trainer.fit(module, train, val)
    return trainer, module, val
