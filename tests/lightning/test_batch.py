"""A batch unpacks, moves to a device and into page-locked memory, and passes through Lightning and worker processes."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.data import extract_batch_size
from torch.utils.data._utils.pin_memory import pin_memory
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier
from robustsigma.data import Baggage
from robustsigma.engine.perturbations import Perturbed
from robustsigma.lightning import Batch, BatchInfo, RobustDataModule
from robustsigma.lightning.batch import CacheStats

SOURCE = Baggage(size=16, train=6, val=5, test=5)


def _batch(padding=0):
    images, yes = 0.1 + torch.arange(12.0).reshape(3, 1, 2, 2) / 16, torch.tensor([True, False, True])
    made = Perturbed(images, yes, yes, torch.arange(3))
    info = BatchInfo("train", images * (~yes[:, None, None, None]), made, 0.5, CacheStats.empty(images))
    return Batch(images, torch.arange(3), torch.arange(3) + 7, padding, info)


def test_it_unpacks_as_images_and_labels():
    batch = _batch()
    images, labels = batch
    assert images is batch.images
    assert labels is batch.labels
    assert len(batch) == extract_batch_size(batch) == 3


def test_padding_is_at_the_end():
    assert _batch().is_padding.tolist() == [False] * 3
    assert _batch(1).is_padding.tolist() == [False, False, True]


def test_samples_are_changed_images_of_a_search_and_cached_ones():
    batch = _batch()
    batch.info.clean[1] += 1  # changed, but not by a search
    assert batch.changed.tolist() == [True, True, True]
    assert batch.sampled.tolist() == [True, False, True]
    batch.info.cache_stats.hits[1] = True
    assert batch.sampled.all()
    assert not Batch(*batch, batch.indices).changed.any()
    assert not Batch(*batch, batch.indices).sampled.any()


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for part in getattr(value, "__dict__", {}).values() for each in _tensors(part)]


def test_every_tensor_moves_and_the_rest_stays():
    batch = _batch(1)
    moved = batch.to("meta")
    assert len(_tensors(moved)) == len(_tensors(batch)) == 13
    assert {each.device.type for each in _tensors(moved)} == {"meta"}
    assert (moved.padding, moved.info.condition, moved.info.seconds) == (1, "train", 0.5)
    assert batch.images.device.type == "cpu"


def test_a_loader_pins_every_tensor(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)
    batch = _batch()
    pinned = pin_memory(batch)
    for before, after in zip(_tensors(batch), _tensors(pinned), strict=True):
        assert after is not before
        assert torch.equal(after, before)


class Plain(pl.LightningModule):
    """A module as people write one, which unpacks its batches."""

    def __init__(self):
        super().__init__()
        self.classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5)))
        self.seen = []

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((batch, self.classifier(images)))
        self.log("val_acc", (self.seen[-1][1].argmax(1) == labels).float().mean())


@pytest.mark.third_party_rng  # weights
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_a_module_may_unpack_it_in_any_precision_and_lightning_knows_its_size(precision, dtype):
    module = Plain()
    trainer = quiet_trainer(precision=precision)
    data = RobustDataModule(SOURCE, val_conditions={"fgsm": FGSM(0.1)}, batch_size=4)
    trainer.validate(module, data, verbose=False)
    assert [len(batch) for batch, _ in module.seen] == [4, 1]
    assert {batch.images.dtype for batch, _ in module.seen} == {dtype}
    assert all(batch.changed.all() and batch.info.condition == "fgsm" for batch, _ in module.seen)
    correct = sum(int((logits.argmax(1) == batch.labels).sum()) for batch, logits in module.seen)
    assert float(trainer.callback_metrics["val_acc"]) == pytest.approx(correct / 5)
