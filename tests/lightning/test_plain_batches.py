"""LitClassifier on the batches of any loader."""

import pytest
import torch
import torch.nn.functional as F
from pictures import MEAN, STD, Pictures, normalize, small_net
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2
from trainers import quiet_trainer

from robustsigma import FGSM, Identity, Mixture
from robustsigma.lightning import LitClassifier, RobustCallback, SampleLabels
from robustsigma.lightning.batch import Batch, as_batch

pytestmark = [
    pytest.mark.third_party_rng,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
PICTURES = Pictures(24)


def cutmix(items):
    return v2.CutMix(num_classes=3)(*default_collate(items))


def as_uint8(items):
    images, labels = default_collate(items)
    return {"pixel_values": (images * 255).round().byte(), "labels": labels.int(), "name": "x"}


def lit(**options):
    torch.default_generator.manual_seed(0)
    return LitClassifier(small_net(), mean=MEAN, std=STD, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **options)


@pytest.mark.parametrize("collate", [default_collate, as_uint8, cutmix, lambda items: [*default_collate(items), "x"]])
def test_a_step_is_that_of_a_plain_loop(collate):
    torch.default_generator.manual_seed(5)
    batch = collate([PICTURES[place] for place in range(24)])
    module = lit(schedule="constant", label_smoothing=0.1)
    net = small_net()
    net.load_state_dict(module.classifier.net.state_dict())
    fit = quiet_trainer(limit_val_batches=0)
    fit.fit(module, DataLoader([batch], batch_size=None))
    images, labels = batch[:2] if isinstance(batch, (list, tuple)) else (batch["pixel_values"] / 255, batch["labels"])
    labels = labels if labels.ndim == 2 else labels.long()
    logits = net(normalize(images))
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
    gradients = torch.autograd.grad(loss, [*net.parameters()])
    assert float(fit.callback_metrics["train_loss"]) == pytest.approx(loss.item(), abs=1e-6)
    hard = labels.argmax(1) if labels.ndim == 2 else labels
    assert float(fit.callback_metrics["train_acc"]) == pytest.approx(float((logits.argmax(1) == hard).float().mean()))
    for after, before, gradient in zip(module.classifier.net.parameters(), net.parameters(), gradients, strict=True):
        torch.testing.assert_close(after.detach(), before.detach() - 0.1 * gradient)


def test_it_learns_and_each_loader_has_its_accuracy():
    module, loaders = lit(), [DataLoader(Pictures(9, seed), batch_size=4) for seed in (1, 2)]
    fit = quiet_trainer(epochs=30)
    fit.fit(module, DataLoader(PICTURES, 8, collate_fn=cutmix), loaders)
    assert float(fit.callback_metrics["val_clean_acc"]) > 0.6
    module.eval()
    names = "test_clean_acc", "test_clean_acc/dataloader_idx_1"
    logged = {name: value for part in fit.test(module, loaders, verbose=False) for name, value in part.items()}
    for name, each in zip(names, loaders, strict=True):
        data = each.dataset
        assert logged[name] == pytest.approx(float((module(data.images).argmax(1) == data.labels).float().mean()))
    assert torch.cat(fit.predict(module, loaders[0])).shape == (9, 3)


def test_with_the_callback():
    conditions = {"clean": Identity(), "FGSM": FGSM(0.1)}
    fit = quiet_trainer(RobustCallback(Mixture({FGSM(0.1): 1.0}), conditions))
    fit.fit(lit(), DataLoader(PICTURES, 8), DataLoader(PICTURES, 8))
    found = {key: float(value) for key, value in fit.callback_metrics.items()}
    assert found["val/clean_acc"] == found["val_clean_acc"]
    assert found["val/FGSM_acc"] <= found["val/clean_acc"]


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_probabilities_that_are_classes_give_the_same_loss(weight):
    rule = SampleLabels("smoothed", smoothing=0.3, weight=weight)
    logits, labels = torch.linspace(-1, 1, 12).reshape(4, 3), torch.tensor([0, 2, 1, 1])
    sampled = torch.tensor([True, False, True, False])
    soft = F.one_hot(labels, 3).float()
    torch.testing.assert_close(rule.loss(logits, labels, sampled, 0.1), rule.loss(logits, soft, sampled, 0.1))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.rand(2, 3, 8, 8), r"batch: expected tensors \(images, labels\), .* got Tensor"),
        ({"picture": torch.rand(2, 3, 8, 8)}, r"batch: expected .* got a dict of \['picture'\]"),
        ((torch.rand(2, 3, 8, 8), ["a", "b"]), "batch: expected"),
        ((torch.rand(2, 3, 8, 8), torch.zeros(3).long()), r"labels: expected integers \(2,\) or probabilities"),
        ((torch.rand(2, 3, 8, 8), torch.zeros(2)), r"labels: expected integers \(2,\) or probabilities \(2, K\)"),
    ],
)
def test_other_batches_are_named(batch, message):
    with pytest.raises(ValueError, match=message):
        as_batch(batch)


def test_normalized_images_are_refused_in_every_stage():
    loader = DataLoader(Pictures(4, transform=normalize), 2)
    expected = r"images: expected values in \[0, 1\].*normalization belongs in Classifier\(mean"
    with pytest.raises(ValueError, match=expected):
        quiet_trainer().fit(lit(), loader)
    with pytest.raises(ValueError, match=expected):
        quiet_trainer().test(lit(), loader, verbose=False)


def test_a_batch_stays_itself():
    batch = Batch(torch.rand(1, 3, 4, 4), torch.zeros(1).long(), torch.arange(1))
    assert as_batch(batch) is batch
    assert batch[0] is batch.images
    assert batch[1] is batch.labels
