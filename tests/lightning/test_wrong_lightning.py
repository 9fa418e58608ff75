"""A Trainer of the package `lightning` is not one of `pytorch_lightning`: the error names the package to import."""

from __future__ import annotations

import pytest
from torch import nn

from robustsigma.data import Baggage
from robustsigma.lightning import RobustDataModule

lightning = pytest.importorskip("lightning.pytorch")


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Flatten()

    def training_step(self, batch, batch_idx):
        return None

    validation_step = test_step = training_step

    def configure_optimizers(self):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
@pytest.mark.filterwarnings("ignore")  # Lightning's own, of what this module leaves out
def test_the_error_names_the_package(verb, by_name, tmp_path):
    data = RobustDataModule(Baggage(size=16, train=5, val=5, test=5))
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=1, **options)
    given = {"datamodule": data} if by_name else {"train_dataloaders" if verb == "fit" else "dataloaders": data}
    with pytest.raises(ValueError, match=r"^trainer: expected a Trainer of the package pytorch_lightning \(import"):
        getattr(trainer, verb)(Module(), **given)
