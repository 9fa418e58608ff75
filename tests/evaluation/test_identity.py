"""A run directory belongs to one network, one dataset and one code: numbers of others are never reported."""

import io
import sys
import types
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from robustsigma import FGSM, GaussianNoise, Identity
from robustsigma.data import Baggage, Datasets
from robustsigma.engine.perturbations import Perturbation, Perturbed
from robustsigma.evaluation import Checks, Evaluation, Retraining, Sweep, Training
from robustsigma.evaluation.noise_sweep import sweep_noise
from robustsigma.evaluation.plan import BASE, fingerprint
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture

SOURCE = Baggage(size=16, train=20, val=10, test=12)
pytestmark = pytest.mark.third_party_rng


@pytest.fixture
def code(monkeypatch):
    """Return a module of the user's, whose `make` returns the network that the user works with."""
    module = types.ModuleType("code_of_mine")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    module.make = lambda num_classes: module.net
    monkeypatch.setitem(sys.modules, "code_of_mine", module)
    return module


def _settings(**changes):
    settings = Evaluation(
        dataset=SOURCE,
        architecture=Architecture("code_of_mine.make"),
        training=Training(epochs=0),
        retraining=Retraining(epochs=1, samples=4, batch_size=8),
        conditions={"clean": Identity(), "fgsm": FGSM(0.03)},
        checks=Checks(images=0),
        mean=(0.5,),
        std=(0.25,),
    )
    return replace(settings, **changes)


def _run(settings, out):
    run = RobustnessRun(settings, out, Console(file=io.StringIO()))
    run.run()
    return run.outcomes(0, BASE, "clean").correct.mean()


def _state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def _same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


WEIGHTS = r"^out: expected a new folder, or the network weights of the run .*name another folder"


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_same_network_resumes_and_another_is_refused(epochs, code, tmp_path):
    settings = _settings(training=Training(epochs=epochs, batch_size=8))
    again = replace(settings, retraining=replace(settings.retraining, on_the_fly={"fgsm": FGSM(0.03)}))
    before = _state(code.net)
    found = _run(settings, tmp_path / "out")
    assert _run(settings, tmp_path / "out") == found
    _run(again, tmp_path / "retrained")
    assert _same(before, code.net.state_dict())
    assert code.net.training
    with torch.no_grad():
        code.net[1].weight.neg_()
    after = _state(code.net)
    with pytest.raises(ValueError, match=WEIGHTS):
        _run(settings, tmp_path / "out")
    assert _same(after, code.net.state_dict())
    if not epochs:
        assert _run(settings, tmp_path / "new") != found


def test_another_forward_of_the_same_weights_is_refused(code, tmp_path):
    RobustnessRun(_settings(), tmp_path, Console(file=io.StringIO()))
    code.net.forward = types.MethodType(lambda net, x: 2 * nn.Sequential.forward(net, x.flip(-1)), code.net)
    with pytest.raises(ValueError, match=WEIGHTS):
        RobustnessRun(_settings(), tmp_path, Console(file=io.StringIO()))


def test_a_file_of_weights_that_was_overwritten_is_refused(code, tmp_path):
    path = tmp_path / "net.pt"
    settings = _settings(architecture=Architecture("small_cnn", {"width": 4}, weights=str(path)))
    net = Architecture("small_cnn", {"width": 4}).build(3, 5)
    torch.save(net.state_dict(), path)
    RobustnessRun(settings, tmp_path / "out", Console(file=io.StringIO()))
    torch.save({"state_dict": net.state_dict()}, path)  # another file of the same weights
    RobustnessRun(settings, tmp_path / "out", Console(file=io.StringIO()))
    torch.save(Architecture("small_cnn", {"width": 4}).build(3, 5).state_dict(), path)
    with pytest.raises(ValueError, match=WEIGHTS):
        RobustnessRun(settings, tmp_path / "out", Console(file=io.StringIO()))


def test_code_of_other_weights_at_each_call_is_refused_unless_it_is_trained(code, tmp_path):
    code.make = lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).requires_grad_(True)
    RobustnessRun(_settings(), tmp_path / "seeded", Console(file=io.StringIO()))  # torch's own draws are seeded

    def make(num_classes):
        net = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
        torch.nn.init.normal_(net[1].weight, generator=generator)
        return net

    generator, code.make = torch.Generator(), make
    with pytest.raises(ValueError, match=r"^architecture.name: expected code that gives the same weights at each call"):
        RobustnessRun(_settings(), tmp_path / "random", Console(file=io.StringIO()))
    settings = _settings(training=Training(epochs=1))
    for _ in range(2):
        RobustnessRun(settings, tmp_path / "trained", Console(file=io.StringIO()))


def test_a_network_that_cannot_be_copied_is_made_anew_or_refused(code):
    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo):
            raise RuntimeError("not this one")

    code.make = lambda num_classes: Uncopied(nn.Flatten(), nn.Linear(768, 5))
    assert Architecture("code_of_mine.make").build(3, 5) is not Architecture("code_of_mine.make").build(3, 5)
    one = code.make(5)
    code.make = lambda num_classes: one
    with pytest.raises(ValueError, match=r"^architecture.name: expected code that makes a new network at each call"):
        Architecture("code_of_mine.make").build(3, 5)


def _tensors(seed=0, count=12):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 5)


def test_datasets_of_the_same_content_resume_and_others_are_refused(code, tmp_path):
    def source(seed):
        return Datasets(_tensors(), None, _tensors(seed), classes=SOURCE.classes)

    found = _run(_settings(dataset=source(1)), tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert _run(_settings(dataset=source(1)), tmp_path) == found
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    told = r"^out: expected a new folder, or the data \(images and labels\) of the run .*data\.test\.\w+ = "
    with pytest.raises(ValueError, match=told):
        _run(_settings(dataset=source(2)), tmp_path)


def test_the_folder_of_a_sweep_is_of_its_images_and_network(code, tmp_path):
    settings = _settings(
        dataset=Datasets(_tensors(), _tensors(1), _tensors(2), classes=SOURCE.classes),
        architecture=Architecture("small_cnn", {"width": 4}),
        training=Training(epochs=1, batch_size=8),
        retraining=Retraining(on_the_fly={"noise": GaussianNoise(0.1)}, epochs=1, batch_size=8),
        sweep=Sweep([0.1, 0.2], images=5),
    )
    sweep_noise(settings, tmp_path, Console(file=io.StringIO()))
    sweep_noise(settings, tmp_path, Console(file=io.StringIO()))
    other = replace(settings, dataset=Datasets(_tensors(), _tensors(3), _tensors(2), classes=SOURCE.classes))
    with pytest.raises(ValueError, match=r"the data \(images and labels\) of the run"):
        sweep_noise(other, tmp_path, Console(file=io.StringIO()))


def _darker(by):
    @dataclass(frozen=True)
    class Darker(Perturbation):
        strength: float = 0.5

        def perturb(self, classifier, images, labels, seeds):
            return Perturbed.plain(images * (1 - by * self.strength))

    if by == 1:

        @dataclass(frozen=True)
        class Darker(Perturbation):
            strength: float = 0.5

            def perturb(self, classifier, images, labels, seeds):
                return Perturbed.plain(images * 0)

    return Darker()


def test_a_condition_of_other_code_under_the_same_name_is_refused(tmp_path):
    first, second = (
        _settings(
            architecture=Architecture(), training=Training(), conditions={"clean": Identity(), "dark": _darker(b)}
        )
        for b in (0, 1)
    )
    RobustnessRun(first, tmp_path, Console(file=io.StringIO()))
    with pytest.raises(ValueError, match=r"^out: expected a new folder, or the source of the run .*Darker"):
        RobustnessRun(second, tmp_path, Console(file=io.StringIO()))


def test_a_network_by_name_that_is_trained_here_is_known_by_its_name():
    assert fingerprint(_settings(architecture=Architecture("small_cnn"), training=Training()))["network"] == {}
