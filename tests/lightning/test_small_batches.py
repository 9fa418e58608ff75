"""Batches of one image, loaders without a length, and validations before a training."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, GaussianNoise, Mixture
from robustsigma.data import Datasets
from robustsigma.lightning import Batch, LitClassifier, OverfittingMonitor, RobustCallback, RobustDataModule
from robustsigma.lightning.batch_norm import AuxiliaryNorms, single_values, split_forward
from robustsigma.models import SmallCNN

pytestmark = [
    pytest.mark.third_party_rng,  # weights
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
X = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])  # a class of one image
ITEMS = TensorDataset(X, Y)


def net(**options):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4, **options),
        nn.Linear(4, 3),
    )  # fmt: skip


def data(**options):
    return RobustDataModule(Datasets(ITEMS, ITEMS, ITEMS, classes=["a", "b", "c"]), **options)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("policy", ["joint", "separate", "auxiliary"])
@pytest.mark.parametrize("batch", [1, 2, 4])  # the last one of 1 image
def test_trainings_with_a_batch_of_one_image(batch, policy, accumulate):
    model = LitClassifier(net(), batch_norm=policy)
    fit = quiet_trainer(epochs=2, accumulate_grad_batches=accumulate)
    fit.fit(model, data(train_perturbation=Mixture({GaussianNoise(0.1): 0.3}), batch_size=batch))
    assert fit.callback_metrics["train_loss"].isfinite()


def test_a_single_value_is_normalized_by_the_running_statistics_and_more_are_as_ever():
    clf = Classifier(net()).train()
    norm = clf.net[4]
    norm.running_mean.fill_(0.3)
    inner = []
    norm.register_forward_hook(lambda module, args, output: inner.append((args[0], output)))
    with pytest.raises(ValueError, match="more than 1 value"):
        clf(X[:1])
    with single_values(X[:1]):
        clf(X[:1])
    torch.testing.assert_close(inner[0][1], (inner[0][0] - 0.3) / (1 + 1e-5) ** 0.5)
    assert (norm.running_mean == 0.3).all()
    assert (clf.net[1].running_mean != 0).all()  # it saw many pixels
    with single_values(X):
        clf(X)
    assert (norm.running_mean != 0.3).all()


def test_one_perturbed_image_passes_the_auxiliary_layers():
    clf = Classifier(net()).train()
    auxiliary = AuxiliaryNorms(clf)
    auxiliary.layers[1].running_mean.fill_(100.0)
    changed = torch.arange(9) == 3
    logits = split_forward(clf, X, changed, auxiliary)
    bias = clf.net[5].bias
    assert (logits[3] - bias).norm() > 10 * (logits[~changed] - bias).norm(dim=1).max()


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": False}])
def test_a_layer_without_running_statistics_returns_its_bias(options):
    clf = Classifier(net(**options)).train()
    with single_values(X[:1]):
        logits = clf(X[:1])
    if "affine" not in options:
        torch.testing.assert_close(logits, clf.net[5].bias[None].detach(), check_device=False)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in clf.parameters())


def test_the_last_smaller_batch_can_be_left_out():
    seen = []

    watch = LambdaCallback(on_train_batch_start=lambda trainer, module, batch, index: seen.append(len(batch.labels)))
    quiet_trainer(watch).fit(LitClassifier(net()), data(batch_size=4, drop_last=True))
    assert seen == [4, 4]
    assert [len(batch.labels) for batch in data(batch_size=4, drop_last=True).val_dataloader()[0]] == [4, 4, 1]
    with pytest.raises(ValueError, match="batch_size: expected at most 9"):
        data(batch_size=10, drop_last=True).train_dataloader()


class Own(pl.LightningModule):
    """A module of the user's, whose BatchNorm is PyTorch's."""

    def __init__(self):
        super().__init__()
        self.classifier = Classifier(net())

    def forward(self, images):
        return self.classifier(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_a_last_batch_of_one_image_tells_what_to_do():
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel .*drop_last=True, of the DataLoader"):
        quiet_trainer(limit_val_batches=0).fit(Own(), data(batch_size=4))
    callback = RobustCallback(GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel .*drop_last=True, of the DataLoader"):
        quiet_trainer(callback, limit_val_batches=0).fit(Own(), DataLoader(ITEMS, 4))
    quiet_trainer(limit_val_batches=0).fit(Own(), data(batch_size=4, drop_last=True))


# Schedules


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ITEMS)


def stream():
    def collate(items):
        return Batch(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]), torch.arange(len(items)))

    return DataLoader(Stream(), batch_size=3, collate_fn=collate)


def rates(loader, **options):
    found = []
    watch = LambdaCallback(on_train_batch_start=lambda fit, *_: found.append(fit.optimizers[0].param_groups[0]["lr"]))
    model = LitClassifier(net(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    quiet_trainer(watch, limit_val_batches=0, **options).fit(model, loader)
    return found


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("options", [{"max_steps": 6, "epochs": -1}, {"epochs": 3, "limit_train_batches": 2}])
def test_the_cosine_of_a_loader_without_a_length_falls_to_zero(options):
    cosine = [(1 + torch.tensor(torch.pi * step / 6).cos().item()) / 2 for step in range(6)]
    assert rates(stream(), **options) == pytest.approx(cosine)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("options", [{"epochs": 2}, {"epochs": -1}])
def test_a_cosine_over_an_unknown_number_of_steps_is_refused(options):
    with pytest.raises(ValueError, match=r"^schedule: expected \"constant\", or a Trainer with max_steps"):
        rates(stream(), **options)


def test_the_rate_does_not_rise_again_after_its_steps():
    model = LitClassifier(net(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    quiet_trainer(limit_val_batches=0).fit(model, data(batch_size=3))
    schedule = model.lr_schedulers()
    after = []
    for _ in range(4):
        model.optimizers().optimizer.step()
        schedule.step()
        after += schedule.get_last_lr()
    assert after == [0, 0, 0, 0]


# Traces of other stages


@pytest.mark.parametrize("first", ["validate", "test"])
@pytest.mark.parametrize("inference", [True, False])
def test_a_module_is_evaluated_and_then_trained(first, inference):
    model, module = LitClassifier(SmallCNN(1, 3, strides=(1, 1, 2, 1), width=2)), data(train_perturbation=FGSM(0.1))
    getattr(quiet_trainer(), first)(model, module, verbose=False)
    quiet_trainer(OverfittingMonitor(images=4), inference_mode=inference).fit(model, module)
    assert model.trainer.callback_metrics["val_clean_acc"].isfinite()


class Cached(RobustDataModule):
    """Keeps what it made at its first use."""

    kept = None

    def split(self, name):
        if self.kept is None:
            self.kept = TensorDataset(X * 1.0, Y + 0)
        return self.kept


def test_what_a_validation_keeps_can_be_trained_on():
    module = Cached(Datasets(ITEMS, ITEMS, ITEMS, classes=["a", "b", "c"]))
    quiet_trainer().validate(LitClassifier(net()), module, verbose=False)
    assert not module.kept.tensors[0].is_inference()


class KeepsStatistics(nn.Module):
    """Keeps its BatchNorm layers in eval mode, whatever it is told."""

    def __init__(self):
        super().__init__()
        self.inner = net().requires_grad_(False)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.inner(x))

    def train(self, mode=True):
        super().train(mode)
        self.inner.eval()
        return self


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")
@pytest.mark.parametrize("policy", ["joint", "separate", "auxiliary"])
def test_frozen_layers_stay_frozen(policy):
    model = LitClassifier(KeepsStatistics().train(), batch_norm=policy)
    before = {key: value.clone() for key, value in model.classifier.net.inner.state_dict().items()}
    options = {"train_perturbation": Mixture({FGSM(0.1): 0.4}), "val_conditions": {"fgsm": FGSM(0.1)}, "batch_size": 4}
    quiet_trainer(OverfittingMonitor(images=4), epochs=2).fit(model, data(**options))
    inner = model.classifier.net.inner
    assert all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
    assert not any(module.training for module in inner.modules())
    assert not any(parameter.requires_grad for parameter in inner.parameters())
    assert model.classifier.net.training
