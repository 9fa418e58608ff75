"""Networks that were trained elsewhere: from names and files to logits, and what is refused."""

from __future__ import annotations

import os
import pickle
import sys
import types
import warnings
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from robustsigma import Classifier
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.models import (
    Architecture,
    ModelCard,
    Pretrained,
    load_model,
    model,
    pretrained,
    save_model,
    weight_files,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*what is published for")
NAME = "torchvision:squeezenet1_1"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NETS = """
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.head = torch.nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

class Wrapped(Net):
    def forward(self, x):
        return type("Output", (), {"logits": super().forward(x), "loss": None})()
"""


def fresh(make, seed=0, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(**kwargs).eval()


def logits(classifier, size=64, channels=3):
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    with classifier.frozen():
        return classifier.logits(x)


@pytest.fixture(scope="module")
def net():
    return fresh(torchvision.models.squeezenet1_1)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """Put a module of networks where it can be imported, and return its name."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "somebodys_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    yield "somebodys_nets"
    sys.modules.pop("somebodys_nets", None)


def _half(state):
    return {key: value.half() for key, value in state.items()}


FILES = {
    "safetensors": ("w.safetensors", lambda state: state),
    "half precision": ("w.safetensors", _half),
    "state dict": ("w.pth", lambda state: state),
    "half state dict": ("w.pt", _half),
    "wrapped": ("w.pth", lambda state: {"state_dict": state, "epoch": 3}),
    "wrapped as model": ("w.pth", lambda state: {"model": state, "args": None}),
    "parallel": ("w.pth", lambda state: {f"module.{key}": value for key, value in state.items()}),
    "compiled and parallel": ("w.pth", lambda state: {f"module._orig_mod.{k}": value for k, value in state.items()}),
    "lightning": ("w.ckpt", lambda state: {"state_dict": {f"classifier.net.{k}": v for k, v in state.items()}}),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_weights_in_a_named_network(kind, net, tmp_path):
    file, change = FILES[kind]
    state = change({key: value.clone() for key, value in net.state_dict().items()})
    (save_file if file.endswith("tensors") else torch.save)(state, tmp_path / file)
    before = torch.get_rng_state()
    classifier, card = model(NAME, weights=str(tmp_path / file))
    assert torch.equal(torch.get_rng_state(), before)
    assert not classifier.training
    assert next(classifier.parameters()).dtype == torch.float32
    entry = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    assert card.classes == tuple(entry.meta["categories"])
    assert (card.mean, card.std) == tuple(IMAGENET.values())
    assert (card.shape, card.geometry) == ((3, 224, 224), ResizeCrop(224, 256))
    rounding = 2e-2 if "half" in kind else 0
    torch.testing.assert_close(logits(classifier), logits(Classifier(net, **IMAGENET)), rtol=0, atol=rounding)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b3", "swin_t"])
@pytest.mark.parametrize("size", [(300, 251), (257, 400), (500, 333)])
def test_geometry_is_that_of_the_published_transforms(name, size):
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    resize = transforms.resize_size[0]
    made = ResizeCrop(transforms.crop_size[0], resize, transforms.interpolation.value).apply(image)
    mean, std = (torch.tensor(values)[:, None, None] for values in (transforms.mean, transforms.std))
    expected = (transforms(image) * std + mean) * 255
    found = torch.from_numpy(np.array(made)).permute(2, 0, 1).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_file_called_as_a_published_one_is_taken_for_it(tmp_path):
    from robustsigma.models.published_weights import published

    newest, older = (published("torchvision:resnet50", file) for file in (None, "/any/where/resnet50-0676ba61.pth"))
    assert newest.geometry == ResizeCrop(224, 232)
    assert older.geometry == ResizeCrop(224, 256)


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_networks_that_normalize_themselves_do_so_once(name, tmp_path):
    make = torchvision.models.get_model_builder(name)
    theirs = fresh(make, init_weights=False, aux_logits=True, transform_input=True)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    expected = Classifier(theirs, **IMAGENET)
    size = 96 if name == "googlenet" else 128
    for arguments in ({}, {"transform_input": True}):
        classifier, card = model(f"torchvision:{name}", weights=str(tmp_path / "w.pth"), arguments=arguments)
        assert (card.mean == (0.5, 0.5, 0.5)) == (not arguments)
        torch.testing.assert_close(logits(classifier, size), logits(expected, size), rtol=1e-4, atol=1e-5)
        assert not [key for key in classifier.state_dict() if "ux" in key]
    assert card.shape[1] == (299 if name == "inception_v3" else 224)


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def no_net(*_, **__):
        raise URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_net)
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    place = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    with pytest.raises(ValueError, match="no network here") as error:
        model(NAME)
    told = str(error.value)
    assert told.startswith("weights: expected")
    assert url in told
    assert str(place) in told
    assert "--weights FILE" in told


def test_weights_that_were_put_into_the_cache_are_found(tmp_path, monkeypatch, net):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    place = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    torch.save(net.state_dict(), place)
    torch.testing.assert_close(logits(model(NAME)[0]), logits(Classifier(net, **IMAGENET)), rtol=0, atol=0)
    place.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(ValueError, match="weights: expected"):
        model(NAME)
    assert not (tmp_path / "ran").exists()


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _nan(state):
    return {key: torch.full_like(value, torch.nan) for key, value in state.items()}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda net, tmp: {"w": Runs(tmp / "ran")}, "weights_only=True"),
        (
            lambda net, tmp: net,
            r"got \S+w.pth \(it holds torchvision\S+, which is code and is not run; of a network save",
        ),
        (lambda net, tmp: [1, 2], "a state dict, got list"),
        (lambda net, tmp: {}, "a state dict"),
        (lambda net, tmp: {"epoch": 3}, "tensors by name"),
        (lambda net, tmp: {**net.state_dict(), "epoch": 3}, "tensors by name"),
        (lambda net, tmp: fresh(torchvision.models.squeezenet1_0).state_dict(), "of another shape"),
        (lambda net, tmp: fresh(torchvision.models.shufflenet_v2_x0_5).state_dict(), "missing"),
        (lambda net, tmp: _nan(net.state_dict()), "finite numbers"),
    ],
)
def test_files_of_weights_that_are_refused(content, told, net, tmp_path):
    torch.save(content(net, tmp_path), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"^weights: expected .*{told}") as found:
        model(NAME, weights=str(tmp_path / "w.pth"))
    assert "\x1b" not in str(found.value)
    assert not (tmp_path / "ran").exists()


def test_more_files_that_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    (tmp_path / "w.safetensors").write_bytes(b"not tensors")
    for file in ("w.pth", "w.safetensors", "nowhere.pth"):
        with pytest.raises(ValueError, match=rf"^weights: expected .*{file}"):
            model(NAME, weights=str(tmp_path / file))


def test_a_class_path_with_arguments_and_names(nets, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ant\nbee\n\nfly\n")
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "geometry": ResizeCrop(8)}
    for classes, expected in (
        (3, ("0", "1", "2")),
        (["a", "b", "c"], ("a", "b", "c")),
        (str(path), ("ant", "bee", "fly")),
    ):
        classifier, card = model(f"{nets}.Net", classes=classes, **statistics)
        assert card.classes == tuple(expected)
        assert classifier.net.head.out_features == 3
        assert (card.shape, card.mean) == ((3, 8, 8), (0.1, 0.2, 0.3))
    assert model(f"{nets}.Net", arguments={"num_classes": 7}, **statistics)[1].classes == tuple("0123456")
    with pytest.raises(ValueError, match=r"^classes: expected 7, as many as there are logits, got 3"):
        model(f"{nets}.Net", arguments={"num_classes": 7}, classes=3, **statistics)
    with pytest.raises(ValueError, match=r"^mean and std: expected the numbers"):
        model(f"{nets}.Net")
    with pytest.raises(ValueError, match=r"^mean and std: expected both or neither"):
        model(f"{nets}.Net", mean=[0.5])
    with pytest.raises(ValueError, match=r"^geometry: expected an image size"):
        model("torchvision.models.VisionTransformer", **{**statistics, "arguments": {
            "image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 1, "hidden_dim": 8, "mlp_dim": 8,
        }})  # fmt: skip


def test_a_network_that_returns_an_object_with_logits(nets):
    statistics = {"mean": [0.5], "std": [0.5], "geometry": ResizeCrop(8)}
    classifier, card = model(f"{nets}.Wrapped", **statistics)
    assert len(card.classes) == 4
    assert logits(classifier).shape == (2, 4)


@pytest.mark.skipif("timm" in sys.modules, reason="timm is installed")
def test_timm_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm:NAME need timm: pip install timm"):
        model("timm:resnet18")


def test_timm_gives_statistics_and_names(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = fresh(timm.create_model, model_name="test_resnet", pretrained=False)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    settings = timm.get_pretrained_cfg("test_resnet")
    classifier, card = model("timm:test_resnet", weights=str(tmp_path / "w.pth"))
    assert card.mean == tuple(settings.mean)
    assert card.geometry == ResizeCrop(160, int(160 / settings.crop_pct), settings.interpolation)
    assert card.classes[0] == "tench"
    expected = logits(Classifier(theirs, mean=settings.mean, std=settings.std))
    torch.testing.assert_close(logits(classifier), expected, rtol=0, atol=0)
    torch.save(fresh(timm.create_model, model_name="test_resnet", num_classes=4).state_dict(), tmp_path / "4.pth")
    assert model("timm:test_resnet", weights=str(tmp_path / "4.pth"))[1].classes == ("0", "1", "2", "3")


def test_a_regnet_of_other_classes_is_recognized(tmp_path):
    own = fresh(torchvision.models.regnet_y_400mf, num_classes=5)
    torch.save(own.state_dict(), tmp_path / "w.pth")
    classifier, card = model("torchvision:regnet_y_400mf", weights=str(tmp_path / "w.pth"))
    assert len(card.classes) == 5
    torch.testing.assert_close(logits(classifier), logits(Classifier(own, **IMAGENET)), rtol=0, atol=0)


def test_one_way_to_all_models(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    description = Pretrained(NAME, weights=str(tmp_path / "w.pth"))
    assert str(description) == f"{NAME}, weights of w.pth"
    classifier, card = description.load()
    saved = save_model(tmp_path / "m.safetensors", classifier.net, card)
    again, same = model(saved)
    assert same == card
    torch.testing.assert_close(logits(again), logits(classifier), rtol=0, atol=0)
    for name, options in ((saved, {"weights": "w.pth"}), (Pretrained(NAME), {"mean": (0.5,)})):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: expected no option beside"):
            model(name, **options)
    with pytest.raises(ValueError, match=r"^model: expected the name of a torchvision model, got 'nothing'"):
        model("torchvision:nothing")
    with pytest.raises(ValueError, match="a torchvision model that classifies images"):
        model("torchvision:fcn_resnet50")


HARMFUL = {
    "a system call": ("os.system", {"command": "mkdir {tmp}/ran"}),
    "what a module imports": ("torchvision.models.resnet.partial", {}),
    "a function of torchvision": ("torchvision.models.get_model", {"name": "resnet18"}),
    "our command line": ("robustsigma.cli.main", {"arguments": ["explain"]}),
    "a name in a name": ("robustsigma.models.network", {"name": "os.system", "channels": 3, "classes": 3}),
    "our files": ("robustsigma.runs.files.write_atomically", {"path": "{tmp}/ran", "content": ""}),
    "a hub": ("timm:hf-hub:somebody/something", {}),
    "a class of torch": ("torch.nn.Linear", {"in_features": 1, "out_features": 2}),
    "a download": ("torchvision.datasets.utils.download_url", {"url": "file:///etc/passwd", "root": "{tmp}/ran"}),
}


@pytest.mark.parametrize("case", HARMFUL)
def test_a_file_cannot_name_what_is_not_a_known_network(case, tmp_path, net):
    name, arguments = HARMFUL[case]
    filled = {key: v.format(tmp=tmp_path) if isinstance(v, str) else v for key, v in arguments.items()}
    card = ModelCard(Architecture(name, filled), ("a", "b"), (3, 8, 8))
    path = save_model(tmp_path / "m.safetensors", net, card)
    with pytest.raises(ValueError, match=r"^architecture\.name: expected a network of robustsigma.*--allow "):
        load_model(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_names_somebodys_network_where_it_is_allowed(nets, tmp_path):
    architecture = Architecture(f"{nets}.Net")
    network = fresh(architecture.build, channels=3, classes=4)
    path = save_model(tmp_path / "m.safetensors", network, ModelCard(architecture, tuple("abcd"), (3, 8, 8)))
    sys.modules.pop(nets)
    for allow in ((), ("somebody",), (f"{nets}.Other",)):
        with pytest.raises(ValueError, match=r"; add --allow somebodys_nets\.Net if you trust it"):
            model(path, allow=allow)
    assert nets not in sys.modules, "it was imported, which runs it"
    for allow in ((nets,), (f"{nets}.Net",)):
        assert len(model(path, allow=allow)[1].classes) == 4


def test_training_may_start_from_weights_of_other_classes(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    architecture = Architecture(NAME, weights=str(tmp_path / "w.pth"))
    found = fresh(architecture.build, channels=3, classes=5)
    own, theirs = found.state_dict(), net.state_dict()
    assert [key for key in own if own[key].shape != theirs[key].shape] == ["classifier.1.weight", "classifier.1.bias"]
    assert all(torch.equal(own[key], theirs[key]) for key in own if not key.startswith("classifier."))
    assert found.architecture.weights is None, "a file of it would need the other file"
    other = fresh(torchvision.models.squeezenet1_0).state_dict()
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"^weights: expected those of this SqueezeNet"):
        fresh(architecture.build, channels=3, classes=5)


def test_a_file_of_weights_alone_is_identified_and_guesses_are_stated(tmp_path, monkeypatch):
    own = fresh(torchvision.models.alexnet, num_classes=2)  # the first network that is tried
    torch.save({"state_dict": own.state_dict()}, tmp_path / "mine.pt")
    file, options = str(tmp_path / "mine.pt"), {"mean": (0.5,), "std": (0.25,)}
    read, reads = weight_files.read_state, []
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(pretrained, "read_state", lambda *given: reads.append(given) or read(*given))
        classifier, card = model(file, classes=["ant", "bee"], geometry=ResizeCrop(64), **options)
    assert len(reads) == 1
    assert (card.classes, card.shape, card.mean) == (("ant", "bee"), (3, 64, 64), (0.5,))
    torch.testing.assert_close(logits(classifier), logits(Classifier(own, **options)), rtol=0, atol=0)
    named = Pretrained("torchvision:alexnet", weights=file)
    for given, told, silent in (({}, "0.485", "nothing"), (options, "geometry.size 224", "--mean")):
        with pytest.warns(UserWarning, match="what is published for torchvision:alexnet is used") as found:
            _, card = replace(named, **given).load()
        assert len(card.classes) == 2
        (message,) = (str(each.message) for each in found)
        assert told in message
        assert silent not in message
    with pytest.raises(ValueError, match=r"classes: expected 2, as many as .* has outputs, got 3"):
        replace(named, classes=3).load()


@pytest.mark.parametrize("prefix", ["classifier.", "", "module.classifier."])
def test_a_checkpoint_brings_its_own_normalization(prefix, net, tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    state = {f"{prefix}{key}": value for key, value in Classifier(net, mean=mean, std=std).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    classifier, card = model(NAME, weights=str(tmp_path / "last.ckpt"))
    assert card.mean == pytest.approx(mean)
    assert card.std == pytest.approx(std)
    torch.testing.assert_close(logits(classifier), logits(Classifier(net, mean=mean, std=std)), rtol=0, atol=0)
    _, card = model(NAME, weights=str(tmp_path / "last.ckpt"), **IMAGENET)
    assert card.mean == IMAGENET["mean"], "what is given comes first"
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    assert model(NAME, weights=str(tmp_path / "bare.pth"))[1].mean == IMAGENET["mean"]


def test_a_network_that_normalizes_itself_is_no_classifier(monkeypatch, tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
            self.register_buffer("std", torch.full((3, 1, 1), 0.5))
            self.net = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.net((x - self.mean) / self.std).mean((2, 3))

    made = types.ModuleType("somebodys_hub")
    made.Net = Net
    monkeypatch.setitem(sys.modules, "somebodys_hub", made)
    torch.save(fresh(Net).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"^mean and std: expected the numbers"):
        model("somebodys_hub.Net", weights=str(tmp_path / "w.pth"))
    _, card = model("somebodys_hub.Net", weights=str(tmp_path / "w.pth"), mean=[0], std=[1], geometry=ResizeCrop(8))
    assert (card.mean, card.std) == ((0,), (1,))


def test_old_names_of_densenet_are_understood():
    from robustsigma.models.weight_files import fit_state

    net = fresh(torchvision.models.DenseNet, growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=3)
    other = fresh(
        torchvision.models.DenseNet, 1, growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=3
    )
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for key, v in other.state_dict().items()}
    assert old.keys() != other.state_dict().keys()
    fit_state(net, old, "here")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())


def test_methods_of_classes_are_constructors_too(monkeypatch):
    made = types.ModuleType("somebodys_hub")

    class Net(torch.nn.Module):
        @classmethod
        def from_pretrained(cls, folder):
            net = cls()
            net.folder = folder
            return net

        def forward(self, x):
            return x.mean((2, 3))

    made.Net = Net
    monkeypatch.setitem(sys.modules, "somebodys_hub", made)
    name = "somebodys_hub.Net.from_pretrained"
    found, _ = model(name, arguments={"folder": "x"}, mean=[0.5], std=[0.5], geometry=ResizeCrop(4))
    assert found.net.folder == "x"


@pytest.mark.parametrize("name", ["nofile.pt", "nowhere/last.ckpt", "best.pth.tar"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").touch()
    near = r"; did you mean 'file\.pt'\?" if name == "nofile.pt" else ""
    with pytest.raises(ValueError, match=rf"^model: expected an existing file, got '{name}'{near}$"):
        model(name)
    with pytest.raises(ValueError, match=r"a file of weights is `architecture\.weights`"):
        Architecture(name).check_origin()
