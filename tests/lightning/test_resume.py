"""`robustsigma fit` resumes after an interrupt and ends as without one, dropout and sample cache included."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from test_checkpoint import CONFIGS, QUIET, TINY
from trainers import quiet_trainer

from robustsigma import Classifier, GaussianNoise, Sigma, SigmaSample
from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.engine.perturbations import SampleCache
from robustsigma.lightning import AtomicCheckpointIO, LitClassifier, RobustDataModule
from robustsigma.lightning.loaders import KeyedDataset
from robustsigma.models import SmallCNN
from robustsigma.runs.files import write_atomically

LAYERS = [CONFIGS / "base.yaml", CONFIGS / "baggage.yaml", CONFIGS / "sigma.yaml", CONFIGS / "overlays" / "cache.yaml"]
FIT = ["fit", *(a for layer in LAYERS for a in ("--config", str(layer))), *TINY, *QUIET[:1], *QUIET[2:],
       "--trainer.max_epochs=3", "--data.batch_size=16", "--ckpt_path=last"]  # fmt: skip
pytestmark = [
    pytest.mark.third_party_rng,  # `fit` seeds everything
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]

VERSION = {"pytorch-lightning_version": "2.6.4"}


def _fit(root, workers=0):
    return main([*FIT, f"--trainer.default_root_dir={root}", f"--data.num_workers={workers}"])


def _last(root):
    (path,) = Path(root).rglob("last.ckpt")
    return torch.load(path, weights_only=True)


def _samples(root):
    (path,) = Path(root).rglob("last.ckpt.samples/*")  # of the last checkpoint alone
    return torch.load(path, weights_only=True)


def _weights(root):
    (path,) = Path(root).rglob("model.safetensors")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("sent", "workers"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)]
)
def test_an_interrupted_fit_ends_as_an_uninterrupted_one(sent, workers, tmp_path, monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert _fit(tmp_path / "whole") == 0
    step, epochs = LitClassifier.training_step, []
    with monkeypatch.context() as patch:

        def interrupt(self, batch, batch_idx):
            if (self.trainer.current_epoch, batch_idx) == (1, 1):
                signal.raise_signal(sent)
            return step(self, batch, batch_idx)

        patch.setattr(LitClassifier, "training_step", interrupt)
        assert _fit(tmp_path / "parts", workers) == 128 + sent
    assert {number: signal.getsignal(number) for number in handlers} == handlers, "another signal would be ignored"
    assert "--ckpt_path last" in capsys.readouterr().err
    assert _last(tmp_path / "parts")["epoch"] == 0

    def watch(self, batch, batch_idx):
        epochs.append(self.trainer.current_epoch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LitClassifier, "training_step", watch)
    assert _fit(tmp_path / "parts", workers) == 0
    assert epochs == [1, 1, 1, 2, 2, 2], "a finished epoch was done again"
    assert "resumes from" in capsys.readouterr().out
    assert _weights(tmp_path / "whole") == _weights(tmp_path / "parts")
    first, second = _last(tmp_path / "whole"), _last(tmp_path / "parts")
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        _equal(first[name], second[name])
    _equal(first["RobustDataModule"], second["RobustDataModule"])
    _equal(*(_samples(tmp_path / run) for run in ("whole", "parts")))
    names = [sorted(path.name for path in (tmp_path / run).rglob("*.ckpt")) for run in ("whole", "parts")]
    assert names[0] == names[1]


def _equal(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            _equal(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


@pytest.mark.slow
def test_a_loading_process_that_dies_ends_fit_with_one_line_and_it_goes_on(tmp_path, monkeypatch, capsys):
    load = KeyedDataset.__getitems__

    def dies(self, keys):
        if keys[0].epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, keys)

    with monkeypatch.context() as patch:
        patch.setattr(KeyedDataset, "__getitems__", dies)
        assert _fit(tmp_path, workers=1) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a loading process (num_workers), often for lack of memory, died" in told
    assert "--ckpt_path last" in told
    assert _last(tmp_path)["epoch"] == 0
    assert _fit(tmp_path, workers=1) == 0
    assert _last(tmp_path)["epoch"] == 2


def test_other_errors_of_the_program_are_not_hidden(monkeypatch):
    def wrong(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("robustsigma.cli.lightning_cli.run", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["fit"])


class KilledError(RuntimeError):
    """Ends a training."""


class Seen(pl.Callback):
    """Keeps the images of every batch, and ends the training before the batch of a step."""

    def __init__(self, end=None):
        self.batches, self.end = [], end

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.end:
            raise KilledError
        self.batches.append((trainer.current_epoch, batch_idx, batch.indices.tolist(), batch.images.sum().item()))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # else the files of the training that was ended stay
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("every", "end", "limit"), [(3, 5, None), (4, 6, None), (2, 7, 3), (5, 8, None)])
def test_a_checkpoint_of_the_middle_of_an_epoch_goes_on_with_its_rest(every, end, limit, workers, tmp_path):
    """4 batches an epoch, or the first 3 of them."""

    def fit(seen, folder, path=None):
        torch.default_generator.manual_seed(0)
        saves = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        trainer = quiet_trainer(
            seen, saves, epochs=3, enable_checkpointing=True, limit_train_batches=limit, limit_val_batches=0
        )
        data = RobustDataModule(
            Baggage(size=16, train=20, val=5, test=5), batch_size=5, num_workers=workers,
            train_perturbation=GaussianNoise(0.1),
        )  # fmt: skip
        model = LitClassifier(SmallCNN(3, 5, width=4))
        trainer.fit(model, data, ckpt_path=path)
        return model.state_dict()

    whole, parts, rest = Seen(), Seen(end), Seen()
    weights = fit(whole, "whole")
    with pytest.raises(KilledError):
        fit(parts, "parts")
    (path,) = tmp_path.glob(f"parts/step={end // every * every}.ckpt")
    resumed = fit(rest, "rest", path)
    assert rest.batches == whole.batches[end // every * every :]
    for name, value in weights.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


class Own(pl.LightningModule):
    """A module as people write one, which keeps nothing of the generators itself."""

    def __init__(self):
        super().__init__()
        net = torch.nn.Sequential(SmallCNN(3, 5, width=4), torch.nn.Dropout(0.3))
        self.classifier = Classifier(net)

    def training_step(self, batch, batch_idx):
        images = batch.images + random.random() / 10 + np.random.rand() / 10  # noqa: NPY002
        return torch.nn.functional.cross_entropy(self.classifier(images), batch.labels)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        raise AssertionError

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("at", [2, 4, 7])  # in the middle of an epoch, at its end, in the middle of the next
def test_a_module_of_ones_own_with_dropout_ends_as_without_an_interrupt(at, tmp_path):
    """4 batches an epoch."""

    def fit(folder, seed, path=None):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        saves = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = quiet_trainer(saves, epochs=3, enable_checkpointing=True, limit_val_batches=0)
        data = RobustDataModule(Baggage(size=16, train=20, val=5, test=5), batch_size=5)
        model = Own()
        trainer.fit(model, data, ckpt_path=path)
        return model.state_dict()

    whole = fit("whole", 0)
    resumed = fit("resumed", 1, tmp_path / "whole" / f"step={at}.ckpt")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def _cached(tmp_path, folder, path=None, *, train=20, epochs=2, **options):
    """Train with a sample cache, four batches an epoch at first, and keep every step."""
    saves = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(saves, epochs=epochs, enable_checkpointing=True, limit_val_batches=0)
    walk = SigmaSample(Sigma(paths=1, max_steps=options.pop("steps", 2)), cache=SampleCache(max_age=9))
    data = RobustDataModule(
        Baggage(size=16, train=20, val=5, test=5, **options.pop("source", {})),
        train_perturbation=walk, **{"batch_size": 5, **options},
    )  # fmt: skip
    trainer.fit(LitClassifier(SmallCNN(3, 5, width=4)), data, ckpt_path=path)
    return data


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_sample_cache_of_other_images_is_dropped(tmp_path):
    first = _cached(tmp_path, "first", epochs=1)
    same = _cached(tmp_path, "same", tmp_path / "first" / "step=2.ckpt", epochs=1)
    _equal(*(data.sample_caches.caches["0"].state_dict() for data in (first, same)))  # filled in both halves
    with pytest.warns(UserWarning, match="sample cache is of other training images; it is dropped"):
        _cached(tmp_path, "other", tmp_path / "first" / "step=4.ckpt", source={"seed": 1})


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_sample_cache_of_another_walk_is_dropped(tmp_path):
    _cached(tmp_path, "first", epochs=1)
    with pytest.warns(
        UserWarning, match=r"sample cache of SigmaSample\(.*\) is of another perturbation; it is dropped"
    ):
        _cached(tmp_path, "other", tmp_path / "first" / "step=4.ckpt", steps=3)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("change", [{"batch_size": 10}, {"seed": 1}, {"limits": {"train": 15}}])
def test_the_rest_of_an_epoch_of_other_batches_is_refused(change, tmp_path):
    _cached(tmp_path, "first", epochs=1)
    with pytest.raises(ValueError, match=r"^ckpt_path: expected one from the end of an epoch, or .*\{"):
        _cached(tmp_path, "middle", tmp_path / "first" / "step=2.ckpt", **change)
    _cached(tmp_path, "end", tmp_path / "first" / "step=4.ckpt", **change)


def test_workers_begin_when_the_first_batch_is_asked_for():
    """Lightning makes the iterator of a resumed training before it tells the sampler the epoch."""
    data = RobustDataModule(Baggage(size=16, train=20, val=5, test=5), batch_size=5, num_workers=1)
    orders = []
    for early in (True, False):
        loader = data.train_dataloader()
        if early:
            batches = iter(loader)
        loader.sampler.set_epoch(3)
        batches = batches if early else iter(loader)
        orders.append(torch.cat([batch.indices for batch in batches]).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != torch.cat([batch.indices for batch in data.train_dataloader()]).tolist()


def test_a_checkpoint_is_whole_or_not_there_and_a_full_disk_names_it(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({**VERSION, "epoch": 1}, path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match=r"could not write .*last\.ckpt: No space left"):
            AtomicCheckpointIO().save_checkpoint({**VERSION, "epoch": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {**VERSION, "epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_full_disk_ends_fit_with_one_line(tmp_path, monkeypatch, capsys):
    def full(path, content):
        if path.name == "last.ckpt":
            raise OSError(28, f"could not write {path}: No space left on device")
        return write_atomically(path, content)

    monkeypatch.setattr("robustsigma.lightning.checkpoints.write_atomically", full)
    assert _fit(tmp_path) == 2
    assert "last.ckpt: No space left on device" in capsys.readouterr().err.splitlines()[-1]
