"""What each training of a run is given: the settings of its plan, and draws that another seed does not share."""

import io
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console

from robustsigma import GaussianNoise, Identity
from robustsigma.data import Albumentations, Baggage
from robustsigma.evaluation import Checks, Evaluation, Retraining, Training
from robustsigma.evaluation import run as running
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.training import TrainingData
from robustsigma.lightning import LitClassifier
from robustsigma.models import Architecture

SETTINGS = Evaluation(
    dataset=Baggage(size=16, train=40, val=10, test=12),
    architecture=Architecture("small_cnn", {"width": 4}),
    training=Training(epochs=2, batch_size=16, lr=0.01, weight_decay=0.3),
    retraining=Retraining(
        retrain={"clean": Identity(), "gaussian": GaussianNoise(0.1)},
        on_the_fly={"gaussian": GaussianNoise(0.1)},
        samples=10,
        epochs=1,
        batch_size=8,
        lr=0.002,
        weight_decay=0.2,
    ),
    conditions={"clean": Identity()},
    checks=Checks(images=0),
    seeds=(0, 1),
)
REGIMES = ("base", "clean/retrain", "gaussian/retrain", "gaussian/on_the_fly")


@dataclass
class Given:
    """What a trainer was given, and the next number that dropout would draw."""

    epochs: int
    model: LitClassifier
    data: TrainingData
    draw: float


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    """Return a function from settings to what each training is given, by seed and regime; nothing is trained."""
    given = []

    class Trainer:
        def __init__(self, callbacks, options, *, max_epochs, **_):
            self.max_epochs, self.callback_metrics = max_epochs, {}

        def fit(self, model, data, ckpt_path):
            given.append(Given(self.max_epochs, model, data, torch.rand(()).item()))

    def run(settings):
        monkeypatch.setattr(running, "quiet_trainer", Trainer)
        made, found = RobustnessRun(settings, tmp_path, Console(file=io.StringIO())), {}
        for seed in settings.seeds:
            for regime in made.regimes:
                made.train(seed, regime)
                found[seed, regime.id] = given.pop()
        return found

    return run


def test_each_training_follows_its_plan(trainings):
    found = trainings(SETTINGS)
    assert set(found) == {(seed, regime) for seed in (0, 1) for regime in REGIMES}
    for (_, regime), given in found.items():
        plan = SETTINGS.training if regime == "base" else SETTINGS.retraining
        rule = given.model.optimizer(given.model.parameters()).defaults
        assert (given.epochs, given.data.batch_size) == (plan.epochs, plan.batch_size)
        assert (rule["lr"], rule["weight_decay"]) == (plan.lr, plan.weight_decay)


def test_every_training_is_augmented(trainings):
    pytest.importorskip("albumentations")
    augment = Albumentations([{"name": "HorizontalFlip", "p": 0.5}])
    found = trainings(replace(SETTINGS, training=replace(SETTINGS.training, augment=augment), seeds=(0,)))
    assert [given.data.augment for given in found.values()] == [augment] * len(REGIMES)


@pytest.mark.filterwarnings("ignore:train_dataloader. its images are clean here")
def test_trainings_of_two_seeds_share_no_draw(trainings):
    found = trainings(SETTINGS)
    for regime in REGIMES:
        first, second = found[0, regime], found[1, regime]
        orders = [[batch.indices.tolist() for batch in given.data.train_dataloader()] for given in (first, second)]
        assert orders[0] != orders[1]
        assert (first.data.seed, second.data.seed) == (0, 1)  # of the noise
        assert first.draw != second.draw
        weights = [next(given.model.parameters()) for given in (first, second)]
        assert not torch.equal(*weights)
    assert not torch.equal(*(found[seed, "clean/retrain"].data.added.tensors[0] for seed in (0, 1)))  # of other images


def test_samples_of_two_seeds_have_other_noise(trainings):
    """All images become samples, so that the seeds have the same ones."""
    found = trainings(replace(SETTINGS, retraining=replace(SETTINGS.retraining, samples=40)))
    clean, noisy = (
        [found[seed, f"{name}/retrain"].data.added.tensors[0] for seed in (0, 1)] for name in ("clean", "gaussian")
    )
    assert torch.equal(*clean)
    assert (noisy[0] != noisy[1]).flatten(1).any(1).all()
