import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, GaussianNoise, Identity, Mixture, SigmaSample
from robustsigma.data import Albumentations, Baggage
from robustsigma.data.loading import subsample
from robustsigma.lightning import LitClassifier, RobustDataModule
from robustsigma.lightning.loaders import Key, KeyedDataset, KeySampler
from robustsigma.models import SmallCNN

SOURCE = Baggage(size=16, train=50, val=10, test=23)
CONDITIONS = {"clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.02), "sigma": SigmaSample()}
pytestmark = pytest.mark.third_party_rng  # weights and dropout


class Watch(pl.Callback):
    """Keeps what every step was given."""

    def __init__(self):
        self.seen = {}

    def _add(self, stage, batch, epoch):
        for image, clean, index in zip(batch.images, batch.info.clean, batch.indices, strict=True):
            self.seen[stage, batch.info.condition, epoch, int(index)] = image.clone(), clean.clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert pl_module.training
        self._add("train", batch, trainer.current_epoch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._add("val", batch, trainer.current_epoch)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._add("test", batch, 0)


def _model():
    torch.default_generator.manual_seed(0)
    return LitClassifier(SmallCNN(3, 5, width=4))


def _run(verb, *, epochs=1, model=None, **options):
    watch = Watch()
    trainer = quiet_trainer(watch, epochs=epochs, num_sanity_val_steps=0)
    getattr(trainer, verb)(model or _model(), RobustDataModule(SOURCE, **options))
    return watch.seen, trainer


@pytest.mark.parametrize("share", [2, 0.5])
def test_overfitting_a_few_batches_sees_the_same_ones_in_each_epoch(share):
    seen = {}

    class Indices(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault(trainer.current_epoch, []).append(batch.indices.tolist())

    trainer = quiet_trainer(Indices(), epochs=2, overfit_batches=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning tells that it turns the shuffling off
        trainer.fit(_model(), RobustDataModule(SOURCE, batch_size=5, train_perturbation=GaussianNoise(0.1)))
    assert seen[0] == seen[1]
    assert len(seen[0]) == (2 if share == 2 else 5)


def test_predictions_are_of_the_test_images_as_they_are():
    model = _model()
    trainer = quiet_trainer()
    found = torch.cat(trainer.predict(model, RobustDataModule(SOURCE, batch_size=5, conditions=CONDITIONS)))
    images = torch.stack([image for image, _ in SOURCE.split("test")])
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(images).softmax(1))


@pytest.mark.unsound_networks
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_a_network_that_returns_probabilities_is_named(verb):
    model = LitClassifier(torch.nn.Sequential(SmallCNN(3, 5, width=4), torch.nn.Softmax(1)))
    attack = {"fit": {"train_perturbation": FGSM(0.02)}, "test": {"conditions": {"fgsm": FGSM(0.02)}}}
    with pytest.warns(UserWarning, match="^net: The network returns probabilities"):
        _run(verb, model=model, **attack[verb])
    noise = {"fit": {"train_perturbation": GaussianNoise(0.1)}, "test": {"conditions": {"noise": GaussianNoise(0.1)}}}
    _run(verb, model=model, **noise[verb])


def test_the_matrix_does_not_depend_on_the_batch_size_or_the_workers():
    whole, _ = _run("test", conditions=CONDITIONS, batch_size=23)
    parts, _ = _run("test", conditions=CONDITIONS, batch_size=4)
    workers, _ = _run("test", conditions=CONDITIONS, batch_size=4, num_workers=2)
    assert len(whole) == 4 * 23
    for key, (image, clean) in whole.items():
        assert torch.equal(clean, parts[key][1])
        assert torch.allclose(image, parts[key][0], atol=1e-4), key
        assert torch.equal(workers[key][0], parts[key][0])


def test_conditions_are_what_they_are_called():
    model = _model()
    seen, trainer = _run("test", model=model, conditions=CONDITIONS)
    assert set(trainer.callback_metrics) == {f"test_{name}_acc" for name in CONDITIONS}
    for (_, condition, _, _), (image, clean) in seen.items():
        moved = (image - clean).abs().max()
        if condition == "clean":
            assert moved == 0
        elif condition == "fgsm":
            assert 0.019 < moved < 0.0201
        else:  # an untrained net has flat logits: the walk moves, but little
            assert moved > (0.05 if condition == "gaussian" else 0)
    scores = model.classifier.eval()(torch.stack([v[0] for k, v in seen.items() if k[1] == "fgsm"]))
    labels = SOURCE.split("test").labels
    right = (scores.argmax(1) == labels[[k[3] for k in seen if k[1] == "fgsm"]]).float().mean()
    assert abs(float(right) - float(trainer.callback_metrics["test_fgsm_acc"])) < 1e-6


def test_training_sees_new_noise_in_each_epoch_and_validation_does_not():
    noisy = {"train_perturbation": GaussianNoise(0.1), "val_conditions": {"noise": GaussianNoise(0.1)}}
    seen, _ = _run("fit", epochs=2, batch_size=16, **noisy)
    again, _ = _run("fit", epochs=2, batch_size=50, **noisy)
    assert len([k for k in seen if k[0] == "train"]) == 2 * 50
    for index in range(50):
        first, second = seen["train", "train", 0, index], seen["train", "train", 1, index]
        assert torch.equal(first[1], second[1])
        assert not torch.equal(first[0], second[0])
        assert torch.equal(first[0], again["train", "train", 0, index][0])
    for index in range(10):
        first, second = seen["val", "noise", 0, index], seen["val", "noise", 1, index]
        assert not torch.equal(first[0], first[1])
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[0], again["val", "noise", 0, index][0])


def test_training_perturbs_against_the_live_network():
    caught = []

    class Spy(FGSM):
        def perturb(self, classifier, images, labels, seeds):
            assert isinstance(classifier, Classifier)
            assert not classifier.net.training
            caught.append(classifier.net.head[-1].weight.detach().clone())
            return super().perturb(classifier, images, labels, seeds)

    _run("fit", batch_size=10, train_perturbation=Mixture({Spy(0.03): 1.0}))
    assert len(caught) == 5
    assert not torch.equal(caught[0], caught[-1])


def test_seed_decides_and_limits_limit():
    seen, _ = _run("fit", limits={"train": 20, "val": 4}, train_perturbation=GaussianNoise(0.1), seed=1)
    other, _ = _run("fit", limits={"train": 20, "val": 4}, train_perturbation=GaussianNoise(0.1), seed=2)
    mine, theirs = ({k[3] for k in s if k[0] == "train"} for s in (seen, other))
    assert len(mine) == len(theirs) == 20
    assert mine != theirs
    assert subsample(10, None, 0) == subsample(10, 10, 0) == list(range(10))


@pytest.mark.parametrize("count", [7, 8, 9])
def test_processes_share_images_without_loss_or_repeat(count):
    parts = [list(KeySampler(range(100, 100 + count), shuffle=False, seed=0, rank=r, world_size=2)) for r in (0, 1)]
    assert sorted(key.image for part in parts for key in part) == list(range(100, 100 + count))
    for r, part in enumerate(parts):
        assert len(KeySampler(range(count), shuffle=False, seed=0, rank=r, world_size=2)) == len(part)
    training = [KeySampler(range(count), shuffle=True, seed=0, rank=r, world_size=2) for r in (0, 1)]
    for sampler in training:
        sampler.set_epoch(3)
    keys = [list(sampler) for sampler in training]
    assert len(keys[0]) == len(keys[1])
    assert {key.image for part in keys for key in part} == set(range(count))
    assert {key.epoch for part in keys for key in part} == {3}


def test_augmentation_depends_on_epoch_and_index_alone():
    pytest.importorskip("albumentations")
    augment = Albumentations([{"name": "HorizontalFlip", "p": 0.5}, {"name": "Affine", "rotate": [-20, 20], "p": 1.0}])
    keyed = KeyedDataset(SOURCE.split("train"), augment, 0)
    whole = keyed.__getitems__([Key(0, i) for i in range(6)])
    single = keyed.__getitems__([Key(0, 4)])
    later = keyed.__getitems__([Key(1, 4)])
    assert torch.equal(whole.images[4], single.images[0])
    assert not torch.equal(single.images, later.images)
    assert single.indices.tolist() == [4]


def test_loaders_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    data = RobustDataModule(SOURCE, batch_size=8)
    indices = np.concatenate([batch.indices.numpy() for batch in data.train_dataloader()])
    assert sorted(indices) == list(range(50))
    assert indices.tolist() != sorted(indices)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": 3}, "dataset: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"num_workers": -1}, "num_workers: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"conditions": {}}, "conditions: expected at least one"),
        ({"conditions": {"a": 3}}, r"conditions\['a'\]: expected a Perturbation"),
        ({"limits": {"training": 3}}, "split: expected"),
        ({"limits": {"train": 0}}, r"limits\['train'\]: expected"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RobustDataModule(**{"dataset": SOURCE, **options})


def test_a_model_without_a_classifier_is_named():
    class Other(pl.LightningModule):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            raise AssertionError

    with pytest.raises(ValueError, match=r"model.classifier: expected a robustsigma.Classifier"):
        _run("test", model=Other())
