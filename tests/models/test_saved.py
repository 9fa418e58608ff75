import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustsigma import Classifier
from robustsigma.models import Architecture, ModelCard, SmallCNN, load_model, network, save_model
from robustsigma.runs.directory import init_run_dir
from robustsigma.runs.files import write_atomically

CLASSES = ("cat", "dog", "a/b: ü")
CARD = ModelCard(Architecture("small_cnn", {"width": 4}), CLASSES, (1, 8, 8), (0.4,), (0.2,))
DOTTED = "robustsigma.models.small_networks.SmallCNN"


def _net(architecture=CARD.architecture, channels=1, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return architecture.build(channels, len(CLASSES))


def _logits(classifier, channels=1, size=8):
    x = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return classifier.logits(x)


def test_a_saved_model_answers_as_before(tmp_path):
    net = _net()
    with torch.no_grad():
        net.features[0][1].running_mean.fill_(0.3)  # buffers travel too
    path = save_model(tmp_path / "new" / "model.safetensors", net, CARD)
    expected = _logits(Classifier(net, mean=CARD.mean, std=CARD.std).eval())
    classifier, card = load_model(str(path))
    assert not classifier.training
    assert card == CARD
    assert card.architecture.arguments == {"width": 4}
    torch.testing.assert_close(_logits(classifier), expected, rtol=0, atol=0)


def test_the_given_network_takes_the_weights(tmp_path):
    path = save_model(tmp_path / "m.safetensors", _net(), ModelCard(None, CLASSES, (1, 8, 8)))
    net = _net(seed=1)
    classifier, card = load_model(path, net=net)
    assert card == ModelCard(None, CLASSES, (1, 8, 8), (0.0,), (1.0,))
    torch.testing.assert_close(_logits(classifier), _logits(Classifier(_net()).eval()), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^net: expected the network that .*m\.safetensors is the weights of"):
        load_model(path)


def test_loading_neither_reads_nor_moves_the_global_generator(tmp_path):
    path = save_model(tmp_path / "m.safetensors", _net(), CARD)
    before = torch.get_rng_state()
    first = _logits(load_model(path)[0])
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        torch.testing.assert_close(_logits(load_model(path)[0]), first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("architecture", "channels", "size"),
    [
        (Architecture(), 1, 16),
        (Architecture("small_cnn", {"width": 2, "strides": [1, 1, 2, 1], "dropout": 0.0}), 3, 8),
        (Architecture(DOTTED, {"width": 2}), 1, 16),
        (Architecture("torchvision:resnet18"), 3, 32),
        (Architecture("torchvision:mnasnet0_5"), 3, 32),  # its state dict must have its version
        (Architecture("torchvision.models.squeezenet1_1", {"dropout": 0.1}), 3, 32),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_kind_of_name_builds_again_from_the_file(tmp_path, architecture, channels, size):
    net = _net(architecture, channels)
    assert net.architecture.name == architecture.name
    card = ModelCard(net.architecture, CLASSES, (channels, size, size), (0.5,), (0.25,))
    expected = _logits(Classifier(net, mean=card.mean, std=card.std).eval(), channels, size)
    assert expected.shape == (4, 3)
    classifier, loaded = load_model(save_model(tmp_path / "m.safetensors", net, card))
    assert loaded.architecture.name == architecture.name
    assert type(classifier.net) is type(net)
    torch.testing.assert_close(_logits(classifier, channels, size), expected, rtol=0, atol=0)
    torch.save(net.state_dict(), tmp_path / "m.pt")
    again = _net(replace(architecture, weights=str(tmp_path / "m.pt")), channels, seed=1)
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_numbers_of_channels_and_classes_can_be_overruled():
    net = _net(Architecture("small_cnn", {"classes": 7, "width": 2}))
    assert net.head[-1].out_features == 7


@pytest.mark.parametrize(
    ("name", "arguments", "channels", "named"),
    [
        ("nothing", {}, 3, "architecture.name"),
        ("", {}, 3, "architecture.name"),
        ("torchvision:nothing", {}, 3, "architecture.name"),
        ("no_such_module.Net", {}, 3, "architecture.name"),
        ("torch.nn.NoSuchClass", {}, 3, "architecture.name"),
        ("torchvision:resnet18", {}, 1, "architecture.name"),
        ("collections.ChainMap", {}, 3, "architecture"),
        ("robustsigma.models.ModelCard", {}, 3, "architecture.arguments"),
        ("small_cnn", {"depth": 3}, 3, "architecture.arguments"),
        ("torchvision:resnet18", {"depth": 3}, 3, "architecture.arguments"),
        ("robustsigma.engine.noise", {}, 3, "architecture.name"),
        ("robustsigma.__version__", {}, 3, "architecture.name"),
        ("torch.finfo", {}, 3, "architecture"),
    ],
)
@pytest.mark.third_party_rng  # weights
def test_names_and_arguments_that_build_nothing(name, arguments, channels, named):
    with pytest.raises(ValueError, match=rf"^{named}[.\w]*: expected .*got "):
        network(name, channels, 3, arguments)


@pytest.mark.third_party_rng  # the fresh last layer
def test_a_network_of_a_yaml_file_starts_from_weights_with_a_fresh_last_layer(tmp_path):
    net = SmallCNN(3, 4, width=4)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    start = network("small_cnn", 3, 7, {"width": 4}, weights=str(tmp_path / "net.pt")).state_dict()
    last = [key for key, value in start.items() if value.shape[:1] == (7,)]
    assert len(last) == 2
    for key, value in net.state_dict().items():
        assert key in last or torch.equal(start[key], value), key
    with pytest.raises(ValueError, match=r"^architecture.padding: expected"):
        network("small_cnn", 3, 7, padding="valid")


def test_small_cnn_checks_its_arguments():
    with pytest.raises(ValueError, match=r"^classes: expected an integer of at least 2, got 1"):
        SmallCNN(3, 1)
    with pytest.raises(ValueError, match=r"^width: expected an integer of at least 1, got 0"):
        SmallCNN(3, 2, width=0)


def _foreign(path):
    save_file(_net().state_dict(), path)


def _foreign_metadata(path):
    save_file(_net().state_dict(), path, metadata={"robustsigma": '{"classes": 3}'})


def _not_json(path):
    save_file(_net().state_dict(), path, metadata={"robustsigma": "small_cnn"})


def _pickle(path):
    path.write_bytes(pickle.dumps({"weight": 1}))


def _torch_pickle(path):
    torch.save(_net().state_dict(), path)


def _other_weights(path):
    save_model(path, _net(Architecture("small_cnn", {"width": 8})), CARD)


def _empty(path):
    path.write_bytes(b"")


def _cut(path):
    save_model(path, _net(), CARD)
    path.write_bytes(path.read_bytes()[:-100])


def _folder(path):
    path.mkdir()


def _nothing(path):
    pass


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_foreign, "a file saved by robustsigma"),
        (_foreign_metadata, "a file saved by robustsigma"),
        (_not_json, "a file saved by robustsigma"),
        (_pickle, "a safetensors file"),
        (_torch_pickle, "a safetensors file"),
        (_empty, "a safetensors file"),
        (_cut, "a safetensors file"),
        (_other_weights, "weights that fit SmallCNN"),
        (_folder, "an existing .safetensors file"),
        (_nothing, "an existing .safetensors file"),
    ],
)
def test_files_that_are_no_such_model_are_refused(tmp_path, make, expected):
    path = tmp_path / "m.safetensors"
    make(path)
    with pytest.raises(ValueError, match=rf"^model: expected {expected}, got .*m\.safetensors"):
        load_model(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "file", b"old")

    def fail(self, target):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert write_atomically(path, b"new").read_bytes() == b"new"


def test_saving_over_a_model_replaces_it(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, _net(), CARD)
    save_model(path, _net(seed=1), CARD)
    expected = _net(seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(path).items())


def test_a_folder_belongs_to_one_run(tmp_path):
    settings = {"a": {"b": [1, 2]}, "seed": 0}
    init_run_dir(tmp_path / "run", settings)
    init_run_dir(tmp_path / "run", {"a": {"b": (1, 2)}, "seed": 0})
    with pytest.raises(ValueError, match=r"^out: expected a new folder.*got a\.b = \[1\] \(the folder has \[1, 2\]\)"):
        init_run_dir(tmp_path / "run", {"a": {"b": [1]}, "seed": 0})
    with pytest.raises(ValueError, match=r"seed = None \(the folder has 0\)"):
        init_run_dir(tmp_path / "run", {"a": {"b": [1, 2]}})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^out: expected a folder, got the file"):
        init_run_dir(tmp_path / "file", settings)
