from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback
from trainers import quiet_trainer

from robustsigma import FGSM, GaussianNoise, Identity, Mixture, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.engine.network_state import tf32
from robustsigma.engine.perturbations import Perturbed
from robustsigma.lightning import (
    AugmentationStatistics,
    Batch,
    BatchInfo,
    LitClassifier,
    RobustDataModule,
    SafetensorsExport,
)
from robustsigma.lightning.augmentation_statistics import augmentation_counts
from robustsigma.models import load_model, network

SOURCE = Baggage(size=16, train=48, val=10, test=10)
pytestmark = pytest.mark.third_party_rng  # weights and dropout


def _fit(tmp_path, callbacks, perturbation=None, epochs=2, **options):
    torch.default_generator.manual_seed(0)
    model = LitClassifier(network("small_cnn", 3, 5, {"width": 4}), mean=[0.5], std=[0.25], **options)
    data = RobustDataModule(SOURCE, train_perturbation=perturbation, batch_size=16)
    trainer = quiet_trainer(*callbacks, epochs=epochs, default_root_dir=tmp_path)
    trainer.fit(model, data)
    return model, data, trainer


def test_statistics_count_what_was_made(tmp_path):
    walk = SigmaSample(Sigma(objective="logit", alpha=0.01, beta=0.1, paths=1, max_steps=3))
    statistics = AugmentationStatistics()
    _, _, trainer = _fit(tmp_path, [statistics], walk)
    totals = statistics.totals
    assert totals.attempted == 2 * 48
    assert totals.samples <= totals.attempted
    assert 0 < totals.steps <= 3 * totals.attempted
    assert totals.converged <= totals.attempted
    assert totals.seconds > 0
    metrics = trainer.callback_metrics
    assert 0 <= metrics["augment_converged"] <= 1
    assert 0 < metrics["augment_steps"] <= 3
    assert metrics["augment_samples_per_second"] > 0


def test_statistics_of_a_mixture_and_of_none(tmp_path):
    statistics = AugmentationStatistics()
    _fit(tmp_path, [statistics], Mixture({GaussianNoise(0.1): 0.25, FGSM(0.03): 0.25}))
    assert 0.25 * 96 < statistics.totals.samples < 0.75 * 96
    assert statistics.totals.attempted == 0
    statistics = AugmentationStatistics()
    _fit(tmp_path, [statistics])
    assert statistics.totals.samples == 0


def _totals(*epochs):
    """Return the totals of epochs of made-up batches."""
    statistics, module = AugmentationStatistics(), SimpleNamespace(log_dict=lambda *_, **__: None)
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda sums, reduce_op: sums))
    for batches in epochs:
        statistics.on_train_epoch_start(trainer, module)
        for batch in batches:
            statistics.on_train_batch_end(trainer, module, None, batch, 0)
        statistics.on_train_epoch_end(trainer, module)
    return statistics.totals


def _walked(padding=0):
    """Return a batch of two images that took 3 and 4 steps, and a second."""
    x, yes = torch.zeros(2, 1, 2, 2), torch.ones(2, dtype=torch.bool)
    made = Perturbed(x + 0.5, yes, yes, torch.tensor([3, 4]))
    info = BatchInfo(clean=x, perturbed=made, seconds=1.0)
    return Batch(made.images, yes.long(), torch.arange(2), padding, info)


def test_statistics_are_the_sums_of_all_epochs():
    found = _totals([_walked(), _walked()], [_walked()])
    assert (found.samples, found.attempted, found.converged) == (6, 6, 6)
    assert (found.steps, found.seconds) == (3 * 7, 3)


def test_padding_is_not_counted():
    found = _totals([_walked(padding=1)])
    assert (found.samples, found.attempted, found.converged, found.steps) == (1, 1, 1, 3)


def test_what_was_not_attempted_has_not_converged():
    x, yes = torch.zeros(2, 1, 2, 2), torch.ones(2, dtype=torch.bool)
    assert augmentation_counts(Perturbed(x, ~yes, yes, yes.long()), x)[:, 2].tolist() == [0, 0]


def test_training_accuracy_is_of_the_images_that_count(monkeypatch):
    model, logged = LitClassifier(network("small_cnn", 3, 5, {"width": 4})).eval(), {}
    monkeypatch.setattr(model, "_log_mean", lambda name, value, size: logged.update({name: (float(value), size)}))
    monkeypatch.setattr(model, "_loss_scale", lambda *_: 1.0)
    x, _ = SOURCE.split("train").batch(range(4))
    with torch.no_grad():
        batch = Batch(x, model(x).argmax(1), torch.arange(4), padding=1)
        model.training_step(batch, 0)
    assert logged["train_acc"] == (1, 3)


def test_conditions_whose_names_differ_in_a_dot_are_logged_apart(tmp_path):
    model, data, trainer = _fit(tmp_path, [], epochs=15, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    x, y, classifier = *data.dataset.split("test").batch(range(10)), model.classifier.eval()
    data.conditions = {"fgsm_0_3": Identity(), "fgsm_0.3": FGSM(0.3), "fgsm_0__3": FGSM(0.3), "fgsm_0_d3": Identity()}
    found = {key: value for part in trainer.test(model, data, verbose=False) for key, value in part.items()}
    alone = {name: classifier(p(classifier, x, y, seed=0)).argmax(1) == y for name, p in data.conditions.items()}
    assert found == pytest.approx({f"test_{name}_acc": float(right.float().mean()) for name, right in alone.items()})
    assert len(set(found.values())) == 2


def test_the_exported_file_is_the_model(tmp_path):
    path = tmp_path / "out" / "model.safetensors"
    model, _, _ = _fit(tmp_path, [SafetensorsExport(str(path))])
    classifier, card = load_model(path)
    assert card.classes == SOURCE.classes
    assert card.shape == SOURCE.shape
    assert (card.mean, card.std) == ((0.5,), (0.25,))
    x = SOURCE.split("test").batch(range(5))[0]
    with torch.no_grad():
        assert torch.equal(classifier(x), model.classifier.eval()(x))


def test_training_learns_and_the_schedule_ends_at_zero(tmp_path):
    model, data, trainer = _fit(tmp_path, [], epochs=25, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    x, y = data.dataset.split("train").batch(range(48))
    with torch.no_grad():
        assert (model.classifier.eval()(x).argmax(1) == y).float().mean() > 0.5  # chance is 0.2
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-8
    assert "val_clean_acc" in trainer.callback_metrics


def test_constant_schedule_keeps_the_rate(tmp_path):
    _, _, trainer = _fit(tmp_path, [], epochs=1, schedule="constant", optimizer=lambda p: torch.optim.SGD(p, lr=0.125))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125


def test_perturbing_leaves_no_gradient_in_the_parameters(tmp_path):
    """One SGD step of rate 1 on FGSM images moves weights by the loss's gradient at those images, no more."""
    torch.default_generator.manual_seed(0)
    model = LitClassifier(network("small_cnn", 3, 5, {"width": 4, "dropout": 0.0}), schedule="constant",
                          optimizer=lambda p: torch.optim.SGD(p, lr=1.0))  # fmt: skip
    before = {name: value.detach().clone() for name, value in model.classifier.net.named_parameters()}
    data = RobustDataModule(SOURCE, train_perturbation=FGSM(0.03), batch_size=48)
    seen = []
    watch = LambdaCallback(on_train_batch_start=lambda trainer, module, batch, index: seen.append(batch))
    quiet_trainer(watch, limit_val_batches=0).fit(model, data)
    fresh = network("small_cnn", 3, 5, {"width": 4, "dropout": 0.0})
    fresh.load_state_dict({**fresh.state_dict(), **before})
    loss = torch.nn.functional.cross_entropy(fresh(seen[0].images), seen[0].labels)
    names, parameters = zip(*fresh.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        after = dict(model.classifier.net.named_parameters())[name].detach()
        assert torch.allclose(after, before[name] - gradient, atol=1e-5), name


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "step"},
        {"label_smoothing": 2.0},
        {"chunk_size": 0},
        {"gradient_dtype": "int8"},
        {"gradient_dtype": torch.int8},
    ],
)
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        LitClassifier(network("small_cnn", 3, 5), **options)


def test_what_attacks_cost_is_the_classifiers():
    for dtype in ("bfloat16", torch.bfloat16):
        classifier = LitClassifier(network("small_cnn", 3, 5), chunk_size=7, gradient_dtype=dtype).classifier
        assert (classifier.chunk_size, classifier.gradient_dtype) == (7, torch.bfloat16)
    assert LitClassifier(network("small_cnn", 3, 5), gradient_dtype="tf32").classifier.gradient_dtype == "tf32"
    assert LitClassifier(network("small_cnn", 3, 5)).classifier.gradient_dtype is None


def test_export_needs_its_data_module(tmp_path):
    callback = SafetensorsExport(str(tmp_path / "m.safetensors"))
    for when in (callback.on_fit_start, callback.on_fit_end):  # before the training, not only after it
        with pytest.raises(ValueError, match=r"^model\.classifier: expected .*, got NoneType"):
            when(pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule())
    data = SimpleNamespace(datamodule=pl.LightningDataModule(), checkpoint_callbacks=[])
    with pytest.raises(ValueError, match=r"^datamodule: expected .* SafetensorsExport, got LightningDataModule"):
        callback.on_fit_start(data, LitClassifier(network("small_cnn", 3, 5)))


def test_evaluation_does_not_round_whatever_pytorch_is_set_to(tmp_path):
    model, data, trainer = _fit(tmp_path, [], epochs=1)
    seen = []
    model.classifier.net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    with tf32():
        trainer.test(model, data, verbose=False)
        assert set(seen) == {"ieee"}
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
