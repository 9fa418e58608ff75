import math
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from trainers import quiet_trainer

from robustsigma import FGSM, NFGSM, PGD, GaussianNoise, Mixture
from robustsigma.data import ArrayDataset, Baggage
from robustsigma.lightning import CatastrophicOverfitting, LitClassifier, OverfittingMonitor, Ramp, RobustDataModule
from robustsigma.lightning.overfitting import OverfittingCheck
from robustsigma.lightning.training_perturbation import has_single_step, pgd_probe

EPS, GREY = 0.1, 128 / 255
ATTACK = FGSM(EPS)
pytestmark = pytest.mark.third_party_rng  # the trainer's loaders


class Wave(nn.Module):
    """Two logits of a gray image; how robust the first is, is up to `depth`.

    The margin is a wave of the distance from the gray image, with a crest at 0 and at eps: with depth 1 one step of
    eps lands on a crest, and many small ones in the trough at eps / 2. With depth 0 nothing changes it.
    """

    def __init__(self):
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(0.0))
        self.everywhere = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        distance = (x - GREY).flatten(1).mean(1)
        margin = self.everywhere - self.depth * (1 - torch.cos(2 * math.pi * distance / EPS))
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def _grey(count):
    return ArrayDataset(torch.full((count, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


class Gray(RobustDataModule):
    def split(self, name):
        return _grey(8)


class Overfit(pl.Callback):
    """Lets the network overfit from an epoch on, as long as it trains on one-step attacks."""

    def __init__(self, epoch, name="depth", value=1.0):
        self.epoch, self.name, self.value = epoch, name, value

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch >= self.epoch and isinstance(trainer.datamodule.train_perturbation, FGSM):
            getattr(pl_module.classifier.net, self.name).data.fill_(self.value)


def _fit(
    tmp_path, monitor, *others, epochs=5, perturbation=ATTACK, checkpoint=None, rate=0.0, ramp=None, size=4, **options
):
    model = LitClassifier(Wave(), optimizer=lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9))
    source = Baggage(size=16, train=1, val=1, test=1)
    data = Gray(source, train_perturbation=perturbation, batch_size=size, ramp=ramp)
    options |= {"limit_val_batches": 0, "default_root_dir": tmp_path}
    trainer = quiet_trainer(*others, monitor, epochs=epochs, **options)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model, data, trainer


def test_a_sound_training_does_not_trigger(tmp_path):
    monitor = OverfittingMonitor(images=8)
    _, _, trainer = _fit(tmp_path, monitor)
    assert [(c.epoch, c.step) for c in monitor.checks] == [(e, 2 * (e + 1)) for e in range(5)]
    assert {(c.probe, c.attack) for c in monitor.checks} == {(1.0, 1.0)}
    assert monitor.triggered == []
    assert trainer.callback_metrics["monitor_probe_acc"] == 1
    assert trainer.callback_metrics["monitor_attack_acc"] == 1


def test_it_warns_once_for_each_fall(tmp_path):
    monitor = OverfittingMonitor(images=8)
    with pytest.warns(CatastrophicOverfitting, match="epoch 2: accuracy under the probe fell by") as told:
        _fit(tmp_path, monitor, Overfit(2))
    assert [w.category for w in told].count(CatastrophicOverfitting) == 1
    assert [c.epoch for c in monitor.triggered] == [2, 3, 4]
    assert all(c.probe < 0.5 and c.attack == 1 for c in monitor.triggered)


@pytest.mark.parametrize(
    ("images", "probe", "attack", "trips"),
    [
        (256, (0.13, 0.01), (0.3, 0.5), True),  # never 0.2, and gone
        (256, (0.13, 0.05), (0.3, 0.5), False),
        (20, (0.15, 0.0), (0.3, 0.5), False),  # three images are no evidence
        (256, (0.13, 0.01), (0.3, 0.2), False),  # all is lost alike
        (256, (0.6, 0.39), (0.9, 0.9), True),
    ],
)
def test_what_is_lost_of_little_counts_too(images, probe, attack, trips, tmp_path, monkeypatch):
    monkeypatch.setattr(
        OverfittingMonitor,
        "_accuracy",
        lambda self, name, *_: {"probe": probe, "attack": attack}[name][min(len(self.checks), 1)],
    )
    monkeypatch.setattr(Gray, "split", lambda self, name: _grey(images))
    monitor = OverfittingMonitor(images=images)
    with pytest.warns(CatastrophicOverfitting) if trips else nullcontext():
        _fit(tmp_path, monitor, epochs=2)
    assert [check.triggered for check in monitor.checks] == [False, trips]


def test_it_stops(tmp_path):
    monitor = OverfittingMonitor(action="stop", images=8)
    with pytest.warns(CatastrophicOverfitting, match="training stops"):
        _, _, trainer = _fit(tmp_path, monitor, Overfit(1))
    assert trainer.current_epoch == 2
    assert trainer.global_step == 4


class Watched(OverfittingMonitor):
    """Keeps the attacks that are measured, by epoch."""

    def _accuracy(self, name, attack, seed, pl_module):
        self.under = [*getattr(self, "under", []), (name, attack)]
        return super()._accuracy(name, attack, seed, pl_module)


def test_it_measures_as_strong_as_the_ramp_makes_the_training(tmp_path):
    monitor, given = Watched(images=8), Watched(PGD(0.05), images=8)
    for each in (monitor, given):
        _fit(tmp_path, each, epochs=4, perturbation=FGSM(0.06), ramp=Ramp(eps=3))
    sizes = [0.02, 0.04, 0.06, 0.06]
    assert [attack.eps for name, attack in monitor.under if name == "attack"] == pytest.approx(sizes)
    assert [attack.eps for name, attack in monitor.under if name == "probe"] == pytest.approx(sizes)
    assert [attack.eps for name, attack in given.under if name == "probe"] == [0.05] * 4
    mixed = Watched(images=8)
    _fit(tmp_path, mixed, epochs=2, perturbation=Mixture({ATTACK: 0.8}), ramp=Ramp(share=2))
    assert [attack.parts[0].share for name, attack in mixed.under if name == "attack"] == pytest.approx([0.4, 0.8])


def test_a_network_that_loses_everything_has_not_overfitted_to_its_attack(tmp_path):
    monitor = OverfittingMonitor(images=8)
    _fit(tmp_path, monitor, Overfit(2, "everywhere", -1.0))
    assert [c.probe for c in monitor.checks] == [1, 1, 0, 0, 0]
    assert monitor.triggered == []


def test_it_checks_every_so_many_steps(tmp_path):
    monitor = OverfittingMonitor(images=8, every=1)
    with pytest.warns(CatastrophicOverfitting):
        _fit(tmp_path, monitor, Overfit(1), epochs=2)
    assert [c.step for c in monitor.checks] == [1, 2, 3, 4]
    assert [c.triggered for c in monitor.checks] == [False, False, True, True]


@pytest.mark.parametrize(
    ("every", "options", "steps"),
    [
        (3, {}, [3, 6]),  # of two steps in each of three epochs
        (2, {"accumulate_grad_batches": 3, "size": 1}, [2, 4, 6, 8]),  # three, three and two of 8 batches an epoch
    ],
)
def test_steps_are_those_of_the_optimizer_over_epochs_and_after_a_resume(every, options, steps, tmp_path):
    whole, half, rest = (OverfittingMonitor(images=8, every=every) for _ in range(3))
    _fit(tmp_path, whole, epochs=3, **options)
    assert [check.step for check in whole.checks] == steps
    _fit(tmp_path, half, epochs=1, **options)[2].save_checkpoint(tmp_path / "half.ckpt")
    _fit(tmp_path, rest, epochs=3, checkpoint=tmp_path / "half.ckpt", **options)
    assert rest.checks == whole.checks


def test_the_check_changes_nothing(tmp_path):
    """A training with the monitor ends at the same bits as one without."""
    ends = []
    for monitors in ([OverfittingMonitor(images=8, every=1)], [pl.Callback()]):
        model, _, _ = _fit(tmp_path, *monitors, epochs=2, rate=0.1)
        ends.append([p.item() for p in model.parameters()])
    assert ends[0] == ends[1]


def test_every_check_draws_the_same_noise(tmp_path):
    """Else two checks would also differ by their noise."""
    drawn = []

    class Spy(PGD):
        def perturb(self, classifier, images, labels, seeds):
            drawn.append(seeds)
            return super().perturb(classifier, images, labels, seeds)

    _fit(tmp_path, OverfittingMonitor(Spy(EPS), images=8), epochs=3)
    assert len(drawn) == 3
    assert all(torch.equal(seeds, drawn[0]) for seeds in drawn)


def test_a_resumed_training_remembers(tmp_path):
    first, second = OverfittingMonitor(images=8), OverfittingMonitor(images=8)
    with pytest.warns(CatastrophicOverfitting):
        _, _, trainer = _fit(tmp_path, first, Overfit(1), epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _fit(tmp_path, second, Overfit(1), epochs=4, checkpoint=tmp_path / "half.ckpt")  # warned of this fall before
    assert second.checks[:2] == first.checks
    assert [c.triggered for c in second.checks] == [False, True, True, True]


def test_probes_are_found_inside_mixtures():
    noise = GaussianNoise(0.1)
    assert pgd_probe(FGSM(0.1, random_start=True), 10) == pgd_probe(NFGSM(0.1), 10) == PGD(0.1, steps=10)
    assert pgd_probe(PGD(0.2, norm="l2", steps=3), 10) == PGD(0.2, norm="l2", steps=10)
    assert pgd_probe(Mixture({noise: 0.5, FGSM(0.2): 0.5}), 10) == PGD(0.2, steps=10)
    assert pgd_probe(noise, 10) is None
    nested = Mixture({Mixture({FGSM(0.1): 0.5}): 0.5, noise: 0.2})
    assert pgd_probe(nested, 3) == PGD(0.1, steps=3)
    assert has_single_step(nested)
    assert not has_single_step(Mixture({noise: 0.5}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "fall_back"}, "action: expected"),
        ({"drop": 0}, "drop: expected"),
        ({"images": 0}, "images: expected"),
        ({"split": "training"}, "split: expected"),
        ({"every": 0}, "every: expected"),
        ({"probe": 3}, "probe: expected a Perturbation"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        OverfittingMonitor(**options)


@pytest.mark.parametrize(
    ("perturbation", "options", "message"),
    [
        (None, {}, "train_perturbation: expected a Perturbation"),
        (GaussianNoise(0.1), {}, "probe: expected a Perturbation, as training has no FGSM"),
    ],
)
def test_a_training_that_it_cannot_watch_is_named(tmp_path, perturbation, options, message):
    with pytest.raises(ValueError, match=message):
        _fit(tmp_path, OverfittingMonitor(**options), perturbation=perturbation)


def test_a_foreign_data_module_is_named(tmp_path):
    with pytest.raises(ValueError, match="datamodule: expected a RobustDataModule"):
        OverfittingMonitor().on_fit_start(pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule())


def test_state_is_plain(tmp_path):
    monitor = OverfittingMonitor()
    monitor.checks = [OverfittingCheck(0, 1, 0.5, 0.6, False)]
    fresh = OverfittingMonitor()
    fresh.load_state_dict(monitor.state_dict())
    assert fresh.checks == monitor.checks
