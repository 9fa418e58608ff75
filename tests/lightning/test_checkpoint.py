from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from trainers import quiet_trainer

from robustsigma import FGSM, PGD, Identity
from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.lightning import LastCheckpoint, LitClassifier, RobustCheckpoint, RobustDataModule, SafetensorsExport
from robustsigma.models import load_model, network

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "fit"
SOURCE = Baggage(size=16, train=20, val=19, test=5)
TINY = ["--data.dataset.init_args.size=16", "--data.dataset.init_args.train=40", "--data.dataset.init_args.val=10",
        "--data.dataset.init_args.test=10", "--model.net.arguments.width=4"]  # fmt: skip
QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
         "--trainer.enable_model_summary=false"]  # fmt: skip
pytestmark = pytest.mark.third_party_rng  # weights


class Peak(pl.Callback):
    """Lets the network answer one class, and in epoch 1 the one that most validation images have."""

    def __init__(self, common, rare):
        self.common, self.rare, self.seen = common, rare, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.endswith("_acc")})

    def on_validation_epoch_start(self, trainer, pl_module):
        with torch.no_grad():
            bias = pl_module.classifier.net.head[-1].bias
            bias.zero_()
            bias[self.common if trainer.current_epoch == 1 else self.rare] = 100


def _fit(tmp_path, *callbacks, conditions=None, checkpoint=None, epochs=3):
    torch.default_generator.manual_seed(0)
    model = LitClassifier(network("small_cnn", 3, 5, {"width": 4}))
    conditions = conditions or {"clean": Identity(), "pgd": PGD(0.01, steps=2)}
    data = RobustDataModule(SOURCE, train_perturbation=FGSM(0.01), val_conditions=conditions, batch_size=10)
    trainer = quiet_trainer(*callbacks, epochs=epochs, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model, trainer


def test_the_most_robust_epoch_is_kept_and_logged(tmp_path):
    counts = torch.bincount(SOURCE.split("val").labels, minlength=5)
    common, rare = int(counts.argmax()), int(counts.argmin())
    high, low = (float(counts[k] / counts.sum()) for k in (common, rare))
    assert high > low
    peak, robust = Peak(common, rare), RobustCheckpoint("pgd", dirpath=str(tmp_path / "kept"))
    paths = {which: tmp_path / f"{which}.safetensors" for which in ("best", "last")}
    exports = [SafetensorsExport(str(path), which=which) for which, path in paths.items()]
    model, _ = _fit(tmp_path, peak, robust, *exports)
    assert [m["last_pgd_acc"] for m in peak.seen] == pytest.approx([low, high, low])
    assert [m["best_pgd_acc"] for m in peak.seen] == pytest.approx([low, high, high])
    assert Path(robust.best_model_path).name.startswith("epoch=1-val_pgd_acc=")
    assert [load_model(path)[0].net.head[-1].bias.argmax() for path in paths.values()] == [common, rare]
    assert model.classifier.net.head[-1].bias.argmax() == rare  # the export leaves the network alone


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_training_remembers_the_best(tmp_path):
    peak, robust = Peak(0, 1), RobustCheckpoint(dirpath=str(tmp_path / "first"))
    last = LastCheckpoint(str(tmp_path / "last"))
    _fit(tmp_path, peak, robust, last, epochs=2)
    again, resumed = Peak(0, 1), RobustCheckpoint(dirpath=str(tmp_path / "first"))
    _fit(tmp_path, again, resumed, LastCheckpoint(str(tmp_path / "last")), epochs=3, checkpoint=last.best_model_path)
    best = max(m["last_pgd_acc"] for m in [*peak.seen, *again.seen])
    assert again.seen[-1]["best_pgd_acc"] == best


def test_a_condition_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="condition: expected one of 'clean'"):
        _fit(tmp_path, RobustCheckpoint(), conditions={"clean": Identity()})
    with pytest.raises(ValueError, match="datamodule: expected a RobustDataModule"):
        RobustCheckpoint().on_fit_start(pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule())


class Unwanted(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        pytest.fail("it was trained for nothing")


def test_best_weights_need_a_robust_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="which: expected 'last'"):
        _fit(tmp_path, SafetensorsExport(str(tmp_path / "x.safetensors"), which="best"), Unwanted(), epochs=1)
    with pytest.raises(ValueError, match="which: expected one of"):
        SafetensorsExport(which="first")


def test_every_process_takes_part_in_asking_for_the_folder_of_the_export(tmp_path):
    """Under DDP it is a collective call: a process that leaves it out goes home, and the one that waits fails."""
    asked = []

    class Other(SimpleNamespace):
        @property
        def log_dir(self):
            asked.append(self.is_global_zero)
            return str(tmp_path)

    model = LitClassifier(network("small_cnn", 3, 5, {"width": 4}))
    data = RobustDataModule(SOURCE)
    for first in (True, False):
        SafetensorsExport().on_fit_end(Other(is_global_zero=first, datamodule=data, fast_dev_run=False), model)
    assert asked == [True, False]
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((CONFIGS / "overlays").glob("*.yaml")), ids=lambda path: path.stem)
def test_overlays_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = [CONFIGS / "base.yaml", CONFIGS / "baggage.yaml", path]
    configs = [argument for layer in layers for argument in ("--config", str(layer))]
    assert main(["fit", *configs, *TINY, *QUIET, "--trainer.max_epochs=2"]) == 0
    assert list(tmp_path.rglob("model.safetensors"))
    assert list(tmp_path.rglob("last.ckpt"))
    if path.stem == "robust":
        assert list(tmp_path.rglob("best.safetensors"))
