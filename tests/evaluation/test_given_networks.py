"""Evaluations of a network that was trained elsewhere: it is the base model as it is."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from robustsigma import FGSM, Identity
from robustsigma.data import Baggage, ImageFolder
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.evaluation import Checks, Evaluation, Retraining, Training
from robustsigma.evaluation._held_out import HeldOut
from robustsigma.evaluation.results import collect
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture, load_model


def _settings(weights, **changes):
    settings = Evaluation(
        dataset=Baggage(size=16, train=40, val=10, test=20),
        architecture=Architecture("robustsigma.models.CifarResNet", {"depth": 8}, weights=str(weights)),
        training=Training(epochs=0, batch_size=16),
        retraining=Retraining(retrain={"fgsm": FGSM(0.03)}, samples=10, epochs=1),
        conditions={"clean": Identity(), "fgsm": FGSM(0.03)},
        checks=Checks(images=0),
        seeds=(0, 1),
        mean=(0.5,),
        std=(0.25,),
    )
    return replace(settings, **changes)


@pytest.fixture
def weights(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = Architecture("robustsigma.models.CifarResNet", {"depth": 8}).build(3, 5)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt"


def test_the_base_model_is_the_given_network(weights, tmp_path):
    given = torch.load(weights, weights_only=True)
    run = RobustnessRun(_settings(weights), tmp_path / "run", Console(file=io.StringIO()))
    run.run()
    for seed in (0, 1):
        base = load_file(run.store.model(seed, "base"))
        assert base.keys() == given.keys()
        assert all(torch.equal(base[name], given[name]) for name in given)
        again = load_file(run.store.model(seed, "fgsm/retrain"))
        assert not torch.equal(again["linear.weight"], given["linear.weight"])
    tested = sorted(
        path.relative_to(tmp_path / "run" / "outcomes").as_posix() for path in tmp_path.rglob("outcomes/*/*")
    )
    assert tested == ["seed0/base.npz", "seed0/fgsm.retrain.npz", "seed1/fgsm.retrain.npz"], (
        "it is the same for each seed"
    )
    assert collect(run).regimes[0]["settings"] == "robustsigma.models.CifarResNet, as it was given"


def test_a_network_of_other_classes_has_to_be_trained(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    state |= {name: torch.zeros(7, *state[name].shape[1:]) for name in ("linear.weight", "linear.bias")}
    torch.save(state, weights)
    settings = _settings(weights)
    run = RobustnessRun(settings, tmp_path / "run", Console(file=io.StringIO()))
    with pytest.raises(ValueError, match=r"weights: expected those of this CifarResNet, got .*of another shape"):
        run.train(0, run.regimes[0])
    run = RobustnessRun(
        replace(settings, training=Training(epochs=1)), tmp_path / "trained", Console(file=io.StringIO())
    )
    run.train(0, run.regimes[0])
    assert run.store.has_model(0, "base")


def test_models_know_how_photographs_become_their_images(weights, tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 24), (number, 0, 0)).save(tmp_path / "images" / name / f"{number}.png")
    geometry = ResizeCrop(16, 18)
    source = ImageFolder(str(tmp_path / "images"), geometry=geometry)
    run = RobustnessRun(_settings(weights, dataset=source), tmp_path / "run", Console(file=io.StringIO()))
    run.train(0, run.regimes[0])
    assert load_model(run.store.model(0, "base"))[1].geometry == geometry
    assert HeldOut(source).geometry == geometry
