"""A network that is attacked while another one is trained or evaluated is reported."""

import copy
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import nn
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, GaussianNoise, Identity
from robustsigma.data import Baggage
from robustsigma.lightning import LitClassifier, RobustDataModule
from robustsigma.models import SmallCNN

SOURCE = Baggage(size=16, train=12, val=8, test=8)
pytestmark = [
    pytest.mark.third_party_rng,  # weights and loaders of the Trainer
    pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning"),
]


def _net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SmallCNN(3, 5, width=4)


class Module(pl.LightningModule):
    """A module as people write one; subclasses differ in the network that a step uses."""

    def __init__(self, mean=0.5, std=0.25):
        super().__init__()
        self.classifier = Classifier(_net(), mean=(mean,), std=(std,))
        self.other = _net(1)
        self.ema = copy.deepcopy(self.classifier)

    def forward(self, images):
        return self.classifier(images)

    def logits(self, images):
        return self(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.logits(batch.images), batch.labels)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.logits(batch.images)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ema(Module):
    """The average equals the network at first: only which of them runs tells them apart."""

    def logits(self, images):
        return self.ema(images)


class Teacher(Module):
    def forward(self, images):
        return self.classifier(images) + 5 * self.other(images)


class Bare(Module):
    def forward(self, images):
        return self.classifier.net(images)


class Scaled(Module):
    """Not the logits, but the same order of classes."""

    def forward(self, images):
        return self.classifier(images) / 3 + 1


class Probabilities(Module):
    def forward(self, images):
        return self.classifier(images).softmax(1)


class Odd(Module):
    """Its forward is not for images."""

    def forward(self, images, labels):
        raise AssertionError

    def logits(self, images):
        return self.classifier(images)


def _run(verb, module, *, callbacks=(), epochs=1, **options):
    trainer = quiet_trainer(*callbacks, epochs=epochs)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        getattr(trainer, verb)(module, datamodule=RobustDataModule(SOURCE, batch_size=4, **options))
    assert not any(each._forward_hooks for each in module.modules())
    return [str(each.message) for each in found if str(each.message).startswith("classifier: ")]


ATTACKS = {"clean": Identity(), "fgsm": FGSM(0.03)}


@pytest.mark.parametrize("kind", [Ema, Teacher, Bare])
def test_another_network_is_reported_once_by_test_and_validate(kind):
    for verb, options in (("test", {"conditions": ATTACKS}), ("validate", {"val_conditions": ATTACKS})):
        (told,) = _run(verb, kind(), **options)
        assert f"its {'validation' if verb == 'validate' else verb} step " in told


@pytest.mark.parametrize("kind", [Ema, Bare])
def test_another_network_is_reported_once_in_training(kind):
    (told,) = _run("fit", kind(), train_perturbation=FGSM(0.03), epochs=2)
    assert "its training step " in told


@pytest.mark.parametrize("kind", [Module, Scaled, Probabilities, Odd])
def test_the_attacked_network_is_not(kind):
    assert _run("test", kind(), conditions=ATTACKS) == []
    assert _run("fit", kind(), train_perturbation=FGSM(0.03), val_conditions=ATTACKS, epochs=2) == []


def test_a_bare_network_without_normalization_is_the_classifiers():
    assert _run("fit", Bare(0.0, 1.0), train_perturbation=FGSM(0.03), val_conditions=ATTACKS) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own
@pytest.mark.parametrize("kind", [Module, Ema, Bare])
def test_a_compiled_network_is_observed_too(kind):
    module = kind()
    module.classifier.net.compile(backend="eager")
    code = module.classifier.net._compiled_call_impl
    found = _run("test", module, conditions=ATTACKS) + _run("fit", module, train_perturbation=FGSM(0.03))
    assert len(found) == (0 if kind is Module else 2)
    assert module.classifier.net._compiled_call_impl is code


def test_noise_attacks_no_network():
    assert _run("test", Ema(), conditions={"noise": GaussianNoise(0.1)}) == []


class Swaps(pl.Callback):
    """Puts other weights in for the steps of validation, after the batch was perturbed."""

    def on_validation_batch_start(self, trainer, module, *_):
        self.kept = copy.deepcopy(module.classifier.net.state_dict())
        module.classifier.net.load_state_dict(_net(2).state_dict())

    def on_validation_batch_end(self, trainer, module, *_):
        module.classifier.net.load_state_dict(self.kept)


def test_weights_swapped_after_the_attack_are_reported_and_before_it_are_not():
    (told,) = _run("validate", Module(), callbacks=[Swaps()], val_conditions=ATTACKS)
    assert "other inputs or weights" in told
    averaged = WeightAveraging(avg_fn=lambda average, current, count: 0.5 * average + 0.5 * current)
    fitted = {"train_perturbation": FGSM(0.03), "val_conditions": ATTACKS, "epochs": 2}
    assert _run("fit", Module(), callbacks=[averaged], **fitted) == []


@pytest.mark.parametrize("policy", ["joint", "separate", "auxiliary"])
def test_our_own_module_is_silent(policy):
    model = LitClassifier(_net(), mean=(0.5,), std=(0.25,), batch_norm=policy)
    fitted = {"train_perturbation": FGSM(0.03), "val_conditions": ATTACKS, "epochs": 2}
    assert _run("fit", model, **fitted) == []


def test_a_failing_step_leaves_no_hook():
    class Fails(Module):
        def logits(self, images):
            raise RuntimeError("of the step")

    model = Fails()
    with pytest.raises(RuntimeError, match="of the step"):
        _run("test", model, conditions=ATTACKS)
    assert not any(each._forward_hooks for each in model.modules())


CLEAN = r"_dataloader: its images are clean here.*trainer\.fit\(model, datamodule=data\)"


@pytest.mark.parametrize("kind", [Module, lambda: LitClassifier(_net())])
def test_a_loader_by_itself_warns_that_it_is_clean(kind):
    data = RobustDataModule(SOURCE, batch_size=4, train_perturbation=FGSM(0.03), conditions=ATTACKS)
    with pytest.warns(UserWarning, match=f"train{CLEAN}"):
        quiet_trainer(limit_val_batches=0).fit(kind(), data.train_dataloader())
    with pytest.warns(UserWarning, match=f"test{CLEAN}"):
        quiet_trainer().test(kind(), data.test_dataloader()[1], verbose=False)


def test_a_loader_after_a_training_with_the_module_warns_too():
    trainer, model = quiet_trainer(), Module()
    data = RobustDataModule(SOURCE, batch_size=4, train_perturbation=FGSM(0.03))
    trainer.fit(model, datamodule=data)
    with pytest.warns(UserWarning, match=f"train{CLEAN}"):
        quiet_trainer(limit_val_batches=0).fit(model, data.train_dataloader())
    trainer.fit_loop.epoch_progress.reset()
    with pytest.warns(UserWarning, match=f"train{CLEAN}"):
        trainer.fit(model, data.train_dataloader())


def test_what_perturbs_nothing_or_predicts_is_silent():
    clean = RobustDataModule(SOURCE, batch_size=4)
    quiet_trainer(limit_val_batches=0).fit(Module(), clean.train_dataloader())
    list(RobustDataModule(SOURCE, conditions=ATTACKS).predict_dataloader())


def test_plain_batches_of_a_data_module_name_what_is_expected():
    images = torch.utils.data.TensorDataset(torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64))
    loader = torch.utils.data.DataLoader(images, batch_size=2)

    class Own(RobustDataModule):
        def train_dataloader(self):
            return loader

    with pytest.raises(ValueError, match=r"^batch: expected a Batch of the loaders of a RobustDataModule"):
        quiet_trainer().fit(Module(), datamodule=Own(SOURCE))
