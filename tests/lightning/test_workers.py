"""Loading processes change nothing: the same batches, and the same trained weights to the last digit."""

from __future__ import annotations

import pytest
import torch
from trainers import quiet_trainer

from robustsigma import FGSM, GaussianNoise, Mixture
from robustsigma.data import Albumentations, Baggage
from robustsigma.lightning import LitClassifier, RobustDataModule
from robustsigma.models import network

SOURCE = Baggage(size=16, train=40, val=8, test=8)


def _data(workers):
    pytest.importorskip("albumentations")
    turns = Albumentations([{"name": "HorizontalFlip", "p": 0.5}, {"name": "Rotate", "limit": 30, "p": 0.8}])
    harder = Mixture({GaussianNoise(0.1): 0.4, FGSM(0.03, random_start=True): 0.4})
    return RobustDataModule(SOURCE, train_perturbation=harder, augment=turns, batch_size=16, num_workers=workers)


def _batches(workers):
    """Return the training batches of two epochs, and the validation's."""
    data = _data(workers)
    train, (val,) = data.train_dataloader(), data.val_dataloader()
    found = []
    for epoch in range(2):
        train.sampler.set_epoch(epoch)
        found += list(train)
    return found + list(val)


def _trained(workers, folder):
    torch.default_generator.manual_seed(0)
    model = LitClassifier(network("small_cnn", 3, 5, {"width": 4}), mean=[0.5], std=[0.25])
    trainer = quiet_trainer(epochs=2, default_root_dir=folder)
    trainer.fit(model, _data(workers))
    return model.state_dict()


@pytest.mark.filterwarnings("ignore:.*its images are clean here")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_batches(workers):
    one_process, found = _batches(0), _batches(workers)
    assert len(found) == len(one_process) == 3 + 3 + 1
    for got, expected in zip(found, one_process, strict=True):
        assert torch.equal(got.images, expected.images)
        assert torch.equal(got.labels, expected.labels)
        assert torch.equal(got.indices, expected.indices)
    first, second = torch.cat([b.images for b in found[:3]]), torch.cat([b.images for b in found[3:6]])
    assert not torch.equal(first, second)  # each epoch has its own order and augmentation


@pytest.mark.slow
@pytest.mark.third_party_rng  # initial weights
def test_the_same_trained_weights(tmp_path):
    expected = _trained(0, tmp_path)
    for workers in (1, 2):
        found = _trained(workers, tmp_path)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert set(found) == set(expected)
