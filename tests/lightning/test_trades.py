"""TRADES in LitClassifier, against a loop as its authors write it, and weights averaged by Lightning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from pictures import MEAN, STD, Pictures, normalize
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from trainers import quiet_trainer

from robustsigma import FGSM, PGD, Identity, Mixture
from robustsigma.data import Datasets
from robustsigma.engine import noise
from robustsigma.lightning import LitClassifier, RobustCallback, RobustDataModule, Trades
from robustsigma.models import network

pytestmark = [
    pytest.mark.third_party_rng,
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
BASE = Pictures(12)


def lit(**options):
    torch.default_generator.manual_seed(0)
    net = network("small_cnn", 3, 3, {"width": 4, "strides": [1, 1, 2, 1], "dropout": 0.0})
    options = {"schedule": "constant", "optimizer": lambda p: torch.optim.SGD(p, lr=0.2), **options}
    return LitClassifier(net, mean=MEAN, std=STD, **options)


def fit(module, loader=None, *callbacks, val=None, **options):
    trainer = quiet_trainer(*callbacks, **options)
    trainer.fit(module, DataLoader(BASE, 6) if loader is None else loader, val)
    return trainer


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_training_is_that_of_a_hand_written_loop(norm):
    eps, steps, beta = (0.05 if norm == "linf" else 0.5), 3, 6.0
    # In double precision: at the start the divergence is so small that rounding decides signs.
    module = lit(trades=Trades(eps, beta, steps, norm=norm)).double()
    loader = DataLoader(TensorDataset(BASE.images.double(), BASE.labels), 6)
    net = copy.deepcopy(module.classifier.net)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.2), []
    for images, labels in loader:
        net.eval()
        seeds = noise.seeds(int(noise.fold(torch.tensor([0]), "trades")), images)
        start = noise.gaussian(noise.fold(seeds, "start"), (3, 8, 8), images.dtype)
        adversarial = (images + 0.001 * start).clamp(0, 1)
        for _ in range(steps):
            adversarial.requires_grad_()
            both = F.log_softmax(net(normalize(adversarial)), 1), F.softmax(net(normalize(images)), 1)
            gradient = torch.autograd.grad(F.kl_div(*both, reduction="sum"), adversarial)[0]
            if norm == "linf":
                moved = adversarial.detach() + eps / 4 * gradient.sign()
                adversarial = torch.min(torch.max(moved, images - eps), images + eps).clamp(0, 1)
            else:
                lengths = gradient.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
                change = adversarial.detach() + eps / 4 * gradient / lengths - images
                adversarial = (images + change.renorm(2, 0, eps)).clamp(0, 1)
        net.train()
        logits = net(normalize(images))
        divergence = F.kl_div(
            F.log_softmax(net(normalize(adversarial.detach())), 1), F.softmax(logits, 1), reduction="batchmean"
        )
        loss = F.cross_entropy(logits, labels) + beta * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trainer = fit(module, loader)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(sum(losses) / 2, rel=1e-6)
    for ours, theirs in zip(module.classifier.net.state_dict().values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_closed_form_of_a_linear_network():
    """Two classes, logits +-w·x: the divergence is largest at a corner of the ball."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    weights = torch.linspace(-1, 1.3, 12)
    with torch.no_grad():
        flat[1].weight.copy_(torch.stack([weights, -weights]))
    module, trades = LitClassifier(flat), Trades(eps=0.05, beta=2.0)
    images = 0.3 + 0.4 * torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    made = trades.perturbed(module.classifier, images, epoch=0)
    torch.testing.assert_close((made - images).abs(), torch.full_like(images, 0.05), rtol=0, atol=1e-6)
    margin = 2 * images.flatten(1) @ weights
    found = trades.divergence(module(images), module(made))
    p, q = margin.sigmoid(), (2 * made.flatten(1) @ weights).sigmoid()
    expected = 2.0 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(found.detach(), expected)
    corners = margin - 0.1 * weights.abs().sum(), margin + 0.1 * weights.abs().sum()
    assert all(any(torch.isclose(2 * x.flatten() @ weights, c[i]) for c in corners) for i, x in enumerate(made))


def test_epochs_and_images_draw_their_own_start():
    module, trades = lit(), Trades(steps=1)
    first, again, later = (trades.perturbed(module.classifier, BASE.images, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(trades.perturbed(module.classifier, BASE.images[3:5], 0), first[3:5])


@pytest.mark.parametrize("policy", ["joint", "separate", "auxiliary"])
@pytest.mark.parametrize("batch", [5, 11])  # 11 leaves a batch of one image
def test_every_policy_and_the_last_image(policy, batch):
    data = Datasets(BASE, BASE, classes=["a", "b", "c"])
    module = lit(trades=Trades(steps=2), batch_norm=policy)
    train = Mixture({FGSM(0.05): 0.5})
    trainer = quiet_trainer(epochs=2, limit_val_batches=0)
    trainer.fit(module, RobustDataModule(data, train_perturbation=train, batch_size=batch))
    assert trainer.callback_metrics["train_loss"].isfinite()


def test_its_checkpoint_loads_alone(tmp_path):
    module = lit(trades=Trades(0.02, beta=4, steps=2))
    fit(module, None, ModelCheckpoint(tmp_path, "last"), enable_checkpointing=True)
    again = LitClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.trades == Trades(0.02, beta=4, steps=2)
    assert torch.equal(again.eval()(BASE.images), module.eval()(BASE.images))
    assert LitClassifier.load_from_checkpoint(tmp_path / "last.ckpt", trades=None).trades is None


@pytest.mark.slow
def test_it_trains_a_network_that_withstands_more():
    train, test, attack = Pictures(150), Pictures(60, 9), PGD(0.08, steps=10)

    def accuracy(module):
        module.eval()
        made = attack(module.classifier, test.images, test.labels, seed=0)
        return float((module(made).argmax(1) == test.labels).float().mean())

    plain, robust = lit(), lit(trades=Trades(0.08))
    for module in (plain, robust):
        fit(module, DataLoader(train, 30, shuffle=True), epochs=15)
    assert accuracy(robust) > accuracy(plain) + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"eps": 2}, "eps: expected"), ({"beta": -1}, "beta: expected"), ({"steps": 0}, "steps: expected")],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Trades(**options)
    with pytest.raises(ValueError, match="trades: expected a Trades or None"):
        LitClassifier(nn.Flatten(), trades=6.0)


# EMA, by Lightning's own callback


def averaged(module, folder, ckpt_path=None, save=None):
    """Return the Trainer of a training with an EMA, a RobustDataModule and a RobustCallback."""
    data = RobustDataModule(
        Datasets(BASE, BASE, classes=["a", "b", "c"]),
        train_perturbation=Mixture({FGSM(0.05): 0.5}),
        val_conditions={"clean": Identity(), "FGSM": FGSM(0.05)},
        batch_size=4,
    )
    callbacks = [EMAWeightAveraging(decay=0.5), RobustCallback(None, {"clean": Identity(), "FGSM": FGSM(0.05)})]
    callbacks += [] if save is None else [save]
    trainer = quiet_trainer(*callbacks, epochs=2, default_root_dir=folder, enable_checkpointing=bool(save))
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def test_an_average_of_weights_is_what_is_evaluated_and_exported(tmp_path):
    module = lit()
    trainer = averaged(module, tmp_path)
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert found["val/clean_acc/dataloader_idx_0"] == pytest.approx(found["val_clean_acc"])
    assert found["val/clean_acc/dataloader_idx_1"] == pytest.approx(found["val_FGSM_acc"])
    module.eval()
    own = float((module(BASE.images).argmax(1) == BASE.labels).float().mean())
    assert own == pytest.approx(found["val_clean_acc"])  # the average is what remains
    plain = lit()
    quiet_trainer(epochs=2, limit_val_batches=0).fit(
        plain, RobustDataModule(
            Datasets(BASE, BASE, classes=["a", "b", "c"]), train_perturbation=Mixture({FGSM(0.05): 0.5}), batch_size=4
        )
    )  # fmt: skip
    pairs = zip(plain.parameters(), module.parameters(), strict=True)
    assert any(not torch.equal(mine, theirs) for mine, theirs in pairs)


def test_an_average_resumes_to_the_bit(tmp_path):
    whole = lit()
    averaged(whole, tmp_path)
    averaged(lit(), tmp_path, save=ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1))
    resumed = lit()
    averaged(resumed, tmp_path, ckpt_path=tmp_path / "step=4.ckpt")
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


def test_an_average_loads_alone(tmp_path):
    module = lit()
    averaged(module, tmp_path, save=ModelCheckpoint(tmp_path, "last"))
    again = LitClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(again.eval()(BASE.images), module.eval()(BASE.images))
