"""What settings leave to a network that was trained elsewhere, and settings that no run could finish."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
import torchvision
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from robustsigma import FGSM, GaussianNoise, Identity
from robustsigma.data import Baggage, ImageFolder
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.evaluation import Checks, Evaluation, Retraining, Sweep, Training, run_study
from robustsigma.evaluation.noise_sweep import sweep_noise
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture, ModelCard, save_model

SMALL = Architecture("small_cnn", {"width": 4})
NAMES = ("wrench", "gun", "battery")  # in the order of the logits, which is not that of the alphabet
CARD = ModelCard(SMALL, NAMES, (3, 16, 16), (0.1, 0.2, 0.3), (0.7, 0.8, 0.9))
NET = "torchvision:squeezenet1_1"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
QUIET = Console(file=io.StringIO())


def _folder(root, names):
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (70, 66), (60 * place, 90 * number, 30)).save(root / name / f"{number}.png")
    return str(root)


@pytest.fixture
def images(tmp_path):
    return ImageFolder(_folder(tmp_path / "images", NAMES), size=16, test_fraction=1)


@pytest.fixture
def weights(tmp_path):
    return _saved(tmp_path / "mine.safetensors", NAMES)


def _saved(path, classes):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = SMALL.build(3, len(classes))
    return str(save_model(path, net, replace(CARD, classes=classes)))


def _given(source, weights, architecture=SMALL, **changes):
    settings = Evaluation(
        dataset=source,
        architecture=replace(architecture, weights=weights),
        training=Training(epochs=0),
        conditions={"clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.03)},
        checks=Checks(images=4, queries=4),
    )
    return replace(settings, **changes)


def _published(monkeypatch, folder):
    """Put weights where those of torchvision are looked for, and return them."""
    monkeypatch.setenv("TORCH_HOME", str(folder))
    place = folder / "hub" / "checkpoints" / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        state = torchvision.models.squeezenet1_1().state_dict()
    torch.save(state, place)
    return state


@pytest.mark.third_party_rng  # a network that is not trained here draws its weights
def test_test_images_alone_are_evaluated_to_the_report(images, weights, tmp_path):
    pytest.importorskip("matplotlib")
    report = run_study(_given(images, weights), tmp_path / "out", console=QUIET)
    dataset, settings = report.results.dataset, report.results.settings
    assert (dataset["train"], dataset["test"]) == (0, 6)
    assert dataset["classes"] == list(NAMES), "the labels are the logits, not the sorted folders"
    assert (settings["mean"], settings["std"]) == (list(CARD.mean), list(CARD.std))
    assert [regime["id"] for regime in report.results.regimes] == ["base"]
    assert "6 test images" in report.path.read_text("utf-8")


NEEDS = {
    "training.epochs: expected 0, as ImageFolder has no training images, got 3": {"training": Training(epochs=3)},
    r"retraining.retrain: expected no regime \(\{\}\), as ImageFolder has no .* got clean, fgsm": {
        "retraining": Retraining(retrain={"clean": Identity(), "fgsm": FGSM(0.1)})
    },
    r"retraining.on_the_fly: expected no regime \(\{\}\), as ImageFolder has no .* got fgsm": {
        "retraining": Retraining(on_the_fly={"fgsm": FGSM(0.1)})
    },
    "retraining.retrain: expected no regime .* got noise": {
        "retraining": Retraining(retrain={"noise": GaussianNoise(0.1)}),
        "sweep": Sweep(),
    },
}


@pytest.mark.parametrize("told", NEEDS)
def test_what_needs_training_images_is_refused_before_anything_is_done(told, images, weights, tmp_path):
    settings, out = _given(images, weights, **NEEDS[told]), tmp_path / "out"
    for run in (lambda: run_study(settings, out, console=QUIET), lambda: sweep_noise(settings, out, QUIET)):
        with pytest.raises(ValueError, match=f"^{told}"):
            run()
    assert not out.exists()


def test_normalization_of_a_network_that_is_trained_here(tmp_path):
    settings = Evaluation(dataset=Baggage(size=16, train=20, val=5, test=5))
    found = resolve_settings(settings)
    assert (found.mean, found.std) == ((0.5,), (0.25,))
    assert resolve_settings(found) == found
    assert resolve_settings(replace(settings, mean=(0.4,))).std == (0.25,)
    RobustnessRun(replace(settings, mean=(0.5,), std=(0.25,)), tmp_path, QUIET)
    RobustnessRun(settings, tmp_path, QUIET)  # the folder of a version that always wrote the numbers goes on


def test_normalization_of_a_given_network_is_not_guessed(images, weights, tmp_path):
    state = load_file(weights)
    torch.save(state, tmp_path / "net.pt")
    save_file(state, tmp_path / "theirs.safetensors")
    for file in ("net.pt", "theirs.safetensors"):
        settings = _given(images, str(tmp_path / file))
        with pytest.raises(ValueError, match=rf"^mean and std: expected the numbers .*, got none for .*{file}"):
            RobustnessRun(settings, tmp_path / "out", QUIET)
        with pytest.raises(ValueError, match=r"^mean and std: expected both or neither beside architecture\.weights"):
            resolve_settings(replace(settings, std=(0.5,)))
        told = replace(settings, mean=(0.4,), std=(0.5,))
        assert resolve_settings(told) == told
    assert resolve_settings(_given(images, weights, mean=(0.4,), std=(0.5,))).mean == (0.4,)
    named = Architecture("torchvision:resnet18")
    with pytest.warns(UserWarning, match=r"net\.pt does not state .*--mean, --std"):
        found = resolve_settings(_given(images, str(tmp_path / "net.pt"), named))
    assert (found.mean, found.std) == IMAGENET
    trained = {**{f"classifier.net.{key}": value for key, value in state.items()},
               "classifier.mean": torch.tensor([0.25]), "classifier.std": torch.tensor([0.5])}  # fmt: skip
    torch.save({"state_dict": trained}, tmp_path / "last.ckpt")
    for architecture in (named, SMALL):
        found = resolve_settings(_given(images, str(tmp_path / "last.ckpt"), architecture))
        assert (found.mean, found.std) == ((0.25,), (0.5,)), "a checkpoint brings its own"
    assert resolve_settings(_given(images, weights, named, training=Training(epochs=0))).mean == CARD.mean
    with pytest.raises(ValueError, match=r"^architecture\.weights: expected an existing file of weights, got nowhere"):
        resolve_settings(_given(images, "nowhere.pt", named))
    with pytest.raises(ValueError, match=r"^mean and std: expected .*, got none for somebodys\.net"):
        resolve_settings(
            Evaluation(images, Architecture("somebodys.net"), Training(epochs=0))
        )  # its code has the weights


def test_labels_are_the_logits_of_a_network_that_is_taken_as_it_is(images, weights, tmp_path):
    assert images.classes != NAMES
    found = resolve_settings(_given(images, weights))
    assert found.dataset.classes == NAMES
    assert [found.dataset.split("test")[place][1] for place in range(6)] == [2, 2, 1, 1, 0, 0]
    assert resolve_settings(found) == found
    alphabetical = _saved(tmp_path / "sorted.safetensors", tuple(sorted(NAMES)))
    assert resolve_settings(_given(images, alphabetical)).dataset == images, "an older folder goes on"
    for classes, told in (
        (("wrench", "gun", "knife"), "a model of the dataset's classes, 'battery' at place 0, got 'wrench'"),
        (("wrench", "gun"), r"a model of \(3, 16, 16\) and 3 classes, got \(3, 16, 16\) and 2 classes"),
    ):
        settings = _given(images, _saved(tmp_path / "other.safetensors", classes))
        with pytest.raises(ValueError, match=rf"^architecture\.weights: expected {told}"):
            RobustnessRun(settings, tmp_path / "out", QUIET)
        learns = replace(settings, dataset=Baggage(size=16), training=Training(epochs=1))
        assert resolve_settings(learns).dataset == learns.dataset, "it learns the labels"
    with pytest.raises(ValueError, match=r"^architecture\.weights: expected a model of \(3, 20, 20\)"):
        resolve_settings(_given(replace(images, size=20), weights))
    assert not (tmp_path / "out").exists()


@pytest.mark.third_party_rng  # a network that is not trained here draws its weights
def test_published_weights_are_evaluated(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    state = _published(monkeypatch, tmp_path)
    # Sorted, they would be the labels 0 to 2 of some network of three classes.
    source = ImageFolder(_folder(tmp_path / "images", ("volcano", "goldfish", "tench")), size=64, test_fraction=1)
    settings = _given(source, "published", Architecture(NET), checks=Checks(images=0))
    report = run_study(settings, tmp_path / "out", console=QUIET)
    base = load_file(tmp_path / "out" / "models" / "seed0" / "base.safetensors")
    assert all(torch.equal(base[name], state[name]) for name in state)
    found = resolve_settings(settings)
    assert (found.mean, found.std) == IMAGENET
    assert [found.dataset.split("test")[place][1] for place in (0, 2, 4)] == [1, 0, 980]
    assert len(report.results.dataset["classes"]) == 1000
    assert resolve_settings(replace(settings, mean=(0.1,), std=(0.2,))).mean == (0.1,)
    assert resolve_settings(replace(settings, dataset=replace(source, size=None))).dataset.geometry == ResizeCrop(
        224, 256
    )


def test_published_weights_of_other_classes(tmp_path, monkeypatch):
    state = _published(monkeypatch, tmp_path)
    settings = _given(Baggage(size=32, train=20, val=5, test=5), "published", Architecture(NET))
    with pytest.raises(ValueError, match=r"^architecture\.weights: expected .* 5 classes, got .* 1000 classes"):
        resolve_settings(settings)
    learns = resolve_settings(replace(settings, training=Training(epochs=1)))
    assert (learns.mean, learns.std) == IMAGENET
    with torch.random.fork_rng(devices=[]):
        net = learns.architecture.build(3, 5)
    fresh = ("classifier.1.weight", "classifier.1.bias")
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items() if name not in fresh)
    assert len(net.classifier[1].weight) == 5
    for name in ("small_cnn", "somebodys.Net"):
        with pytest.raises(ValueError, match=r"^architecture\.weights: expected a file; published is for torchvision"):
            Architecture(name, weights="published")


def test_published_weights_of_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    asked = []

    def cached(name, pretrained=False, **arguments):
        asked.append((pretrained, arguments))
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", cached)
    architecture = Architecture("timm:test_resnet", {"num_classes": 1000, "drop_rate": 0.1}, weights="published")
    with torch.random.fork_rng(devices=[]):
        state, told = architecture.state()
        fit = replace(architecture, arguments={}).build(3, 4)
    assert asked[0] == (True, {"drop_rate": 0.1})
    assert told == "the published weights of timm:test_resnet"
    assert state["fc.weight"].shape[0] == 1000
    assert fit.num_classes == 4
    settings = timm.get_pretrained_cfg("test_resnet")
    found = resolve_settings(_given(Baggage(size=16), "published", architecture, training=Training(epochs=1)))
    assert (found.mean, found.std) == (tuple(settings.mean), tuple(settings.std))
