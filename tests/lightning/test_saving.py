"""What is saved is what is loaded: checkpoints, exports and hyper-parameters."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from test_checkpoint import Unwanted
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.data import TensorDataset
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, GaussianNoise, Mixture, Sigma, SigmaSample
from robustsigma.data import Datasets
from robustsigma.lightning import (
    LastCheckpoint,
    LitClassifier,
    RobustCheckpoint,
    RobustDataModule,
    SafetensorsExport,
    SampleLabels,
)
from robustsigma.models import ModelCard, load_model, network, save_model

pytestmark = [
    pytest.mark.third_party_rng,  # weights
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch.compile looks
]
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.rand(12, 3, 8, 8, generator=GENERATOR), torch.arange(12) % 2
ITEMS = TensorDataset(X, Y)
STATISTICS = {"mean": [0.1, 0.2, 0.3], "std": [0.2, 0.25, 0.3]}


def small(**arguments):
    return network("small_cnn", 3, 2, {"width": 2, "strides": [1, 1, 2, 1], **arguments})


def data(**options):
    options = {"train_perturbation": FGSM(0.1), "batch_size": 6, **options}
    return RobustDataModule(Datasets(ITEMS, ITEMS, ITEMS, classes=["a", "b"]), **options)


def trainer(tmp_path, *callbacks, epochs=1, **options):
    options = {"enable_checkpointing": True, "limit_val_batches": 0, "default_root_dir": tmp_path, **options}
    return quiet_trainer(*callbacks, epochs=epochs, **options)


def fitted(tmp_path, model, module=None):
    trainer(tmp_path, LastCheckpoint(str(tmp_path))).fit(model, module or data())
    return str(tmp_path / "last.ckpt")


def logits(model):
    with torch.no_grad():
        return model.eval()(X)


# Statistics


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


@pytest.mark.parametrize("own", [{}, {"mean": [0.1], "std": [0.2]}])
@pytest.mark.filterwarnings("ignore:(mean|std). the loaded weights replace")
def test_a_state_dict_brings_its_statistics_in_its_own_number_of_channels(own):
    saved, fresh = Classifier(linear(), **STATISTICS), Classifier(linear(), **own)
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh(X), saved(X))


def test_statistics_that_were_given_and_differ_are_replaced_with_a_warning():
    saved = Classifier(linear(), **STATISTICS).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classifier(linear(), **STATISTICS).load_state_dict(saved)
    with pytest.warns(UserWarning, match="^mean: the loaded weights replace"):
        Classifier(linear(), mean=[0.5], std=STATISTICS["std"]).load_state_dict(saved)


def test_a_state_dict_without_statistics_needs_given_ones():
    saved = Classifier(linear(), **STATISTICS)
    old = {key: value for key, value in saved.state_dict().items() if key.startswith("net.")}
    with pytest.raises(RuntimeError, match='"mean", "std"'):
        Classifier(linear()).load_state_dict(old)
    given = Classifier(linear(), **STATISTICS)
    given.load_state_dict(old)
    assert torch.equal(given(X), saved(X))


# Checkpoints


def test_a_module_comes_back_with_and_without_its_network(tmp_path):
    model = LitClassifier(small(), **STATISTICS, batch_norm="auxiliary", label_smoothing=0.1,
                          sample_labels=SampleLabels("smoothed"), gradient_dtype="bfloat16")  # fmt: skip
    path = fitted(tmp_path, model)
    for given in ({}, {"net": small()}):
        again = LitClassifier.load_from_checkpoint(path, **given)
        assert torch.equal(logits(again), logits(model))
        assert (again.label_smoothing, again.sample_labels) == (0.1, SampleLabels("smoothed"))
        assert again.classifier.gradient_dtype == torch.bfloat16
        # A further training goes on with the second set of layers, too.
        trained = model.auxiliary.layers[0].weight
        again.setup("fit")
        assert torch.equal(again.auxiliary.layers[0].weight, trained)
    assert not torch.equal(trained, model.classifier.net.features[0][1].weight)


def test_a_network_that_no_file_may_name_has_to_be_given(tmp_path):
    for net, told in ((linear(), "got none"), (network("test_saving.Own", 3, 2), "test_saving.Own")):
        path = fitted(tmp_path, LitClassifier(net))
        with pytest.raises(ValueError, match=rf"^net: expected the network itself.*net=….*{told}"):
            LitClassifier.load_from_checkpoint(path)


class Own(nn.Sequential):
    def __init__(self, channels, classes):
        super().__init__(nn.Flatten(), nn.Linear(64 * channels, classes))


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    path = fitted(tmp_path, LitClassifier(small()))
    with pytest.raises(ValueError, match=r"^ckpt_path: expected weights that fit this LitClassifier, got .*head"):
        LitClassifier.load_from_checkpoint(path, net=network("small_cnn", 3, 5, {"width": 2}), strict=False)


def test_a_checkpoint_of_a_compiled_network_fits_the_network(tmp_path):
    net = small()
    path = fitted(tmp_path, LitClassifier(torch.compile(net, backend="eager")), data(train_perturbation=None))
    for given in ({}, {"net": small()}, {"net": torch.compile(small(), backend="eager")}):
        again = LitClassifier.load_from_checkpoint(path, **given)
        assert torch.equal(logits(again), logits(Classifier(net)))
    checkpoint = torch.load(path, weights_only=True)
    again.on_load_checkpoint(checkpoint)
    assert checkpoint["state_dict"]._metadata == again.state_dict()._metadata, "modules find their versions there"


class Distilled(LitClassifier):
    """Leaves its frozen teacher out of checkpoints."""

    def __init__(self, net, teacher):
        super().__init__(net)
        self.teacher, self.strict_loading = teacher.requires_grad_(False), False

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("teacher.")}

    def state_dict(self, *args, **kwargs):
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if "teacher." not in k}


def test_strict_loading_is_honored(tmp_path):
    path = fitted(tmp_path, Distilled(small(), small()))
    trainer(tmp_path, epochs=2, enable_checkpointing=False).fit(Distilled(small(), small()), data(), ckpt_path=path)
    again = Distilled(small(), small())
    trainer(tmp_path, enable_checkpointing=False).test(again, data(), ckpt_path=path, verbose=False)
    with pytest.warns(UserWarning, match="in the model state dict but not in the checkpoint"):
        LitClassifier.load_from_checkpoint(path, batch_norm="auxiliary", strict=False)
    with pytest.raises(ValueError, match="ckpt_path: expected weights that fit"):
        LitClassifier.load_from_checkpoint(path, batch_norm="auxiliary")


# Hyper-parameters


class Mine(RobustDataModule):
    def __init__(self, dataset, perturbation, where=None):
        super().__init__(dataset, train_perturbation=perturbation, batch_size=6)
        self.save_hyperparameters()


class Plain(pl.LightningDataModule):
    def __init__(self, perturbation):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return data().train_dataloader()


MIXED = Mixture({SigmaSample(Sigma(paths=1, max_steps=2)): 0.3, GaussianNoise(0.1): 0.3})


@pytest.mark.filterwarnings("ignore:.*its images are clean here")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Mine(Datasets(ITEMS, ITEMS, ITEMS, classes=["a", "b"]), MIXED, Path("folder")),
        lambda: Plain(FGSM(0.1)),
    ],
)
def test_a_training_resumes_where_a_data_module_saves_its_arguments(make, tmp_path):
    path = fitted(tmp_path, LitClassifier(small(), schedule="constant"), make())
    resumed = trainer(tmp_path, epochs=2, enable_checkpointing=False)
    resumed.fit(LitClassifier(small(), schedule="constant"), make(), ckpt_path=path)
    assert resumed.global_step == 4
    if isinstance(make(), Mine):
        assert Mine.load_from_checkpoint(path, dataset=data().dataset).train_perturbation == MIXED


class Saved(LitClassifier):
    def __init__(self, net, extra=None):
        super().__init__(net)
        self.save_hyperparameters()


@pytest.mark.filterwarnings("ignore:Attribute 'net'")
def test_a_network_among_the_saved_arguments_does_not_spoil_the_checkpoint(tmp_path):
    model = Saved(small(), 3)
    again = Saved.load_from_checkpoint(fitted(tmp_path, model))
    assert again.hparams.extra == 3
    assert torch.equal(logits(again), logits(model))


@pytest.mark.filterwarnings("ignore:Attribute 'net'")
def test_arguments_that_cannot_be_read_again_are_named_before_the_training(tmp_path):
    with pytest.warns(UserWarning, match=r"save_hyperparameters of Saved: checkpoints hold torch\.optim\.sgd\.SGD"):
        fitted(tmp_path, Saved(small(), torch.optim.SGD))


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (lambda root: LastCheckpoint(f"{root}/file/inside"), "dirpath: expected a folder to write"),
        (lambda root: RobustCheckpoint("clean", dirpath=f"{root}/file/inside"), "dirpath: expected a folder to write"),
        (lambda root: SafetensorsExport(f"{root}/file/m.safetensors"), "path: expected a place"),
        (lambda root: SafetensorsExport(f"{root}"), "path: expected a file"),
    ],
)
def test_places_that_cannot_be_written_are_named_before_the_training(callback, told, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=told):
        trainer(tmp_path, callback(tmp_path), Unwanted()).fit(LitClassifier(small()), data())


# Exports

CARD = ModelCard(None, ("a", "b"), (3, 8, 8))


def compiled_inside(net):
    net.features = torch.compile(net.features, backend="eager")
    return net


def each(hook):
    def make(net):
        for block in net.features:
            hook(block[0])
        return net

    return make


HOOKS = {
    "parametrized": each(parametrizations.weight_norm),
    "parametrized spectral": each(parametrizations.spectral_norm),
    "weight_norm": each(weight_norm),
    "spectral_norm": each(spectral_norm),
    "pruned": each(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        lambda net: torch.compile(net, backend="eager"),
        compiled_inside,
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        *HOOKS.values(),
    ],
    ids=["compiled", "compiled inside", "parallel", "averaged", *HOOKS],
)
def test_an_export_is_loaded_with_the_same_logits(make, tmp_path):
    path = tmp_path / "m.safetensors"
    model = LitClassifier(make(small(dropout=0.0)), **STATISTICS)
    trainer(tmp_path, SafetensorsExport(str(path)), enable_checkpointing=False).fit(model, data())
    loaded, card = load_model(path)
    assert card.architecture.name == "small_cnn"
    torch.testing.assert_close(logits(loaded), logits(model.classifier))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_best_weights_of_a_network_with_hooks_are_exported_and_the_last_stay(tmp_path):
    path, model = tmp_path / "best.safetensors", LitClassifier(HOOKS["weight_norm"](small()))
    robust = RobustCheckpoint("clean", dirpath=str(tmp_path))
    fit = trainer(tmp_path, robust, SafetensorsExport(str(path), which="best"), epochs=3)
    fit.limit_val_batches = 1.0
    fit.fit(model, data())
    last = {key: value.clone() for key, value in model.state_dict().items()}
    best = LitClassifier(HOOKS["weight_norm"](small()))
    best.load_state_dict(torch.load(robust.best_model_path, weights_only=True)["state_dict"])
    torch.testing.assert_close(logits(load_model(path)[0]), logits(best.classifier))
    assert all(torch.equal(value, last[key]) for key, value in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.first, self.second = nn.Linear(64 * channels, 8), nn.Linear(8, 8)
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, classes)
        self.third.weight = self.second.weight

    def forward(self, x):
        return self.last(self.third(self.second(self.first(x.flatten(1)))))


def test_tensors_that_share_memory_are_exported(tmp_path):
    path, model = tmp_path / "m.safetensors", LitClassifier(network("test_saving.Tied", 3, 2))
    trainer(tmp_path, SafetensorsExport(str(path)), enable_checkpointing=False).fit(model, data())
    loaded, _ = load_model(path, allow=("test_saving",))
    assert torch.equal(logits(loaded), logits(model.classifier))
    assert loaded.net.third.weight is loaded.net.second.weight


def test_a_given_network_is_loaded_whether_it_is_compiled_or_not(tmp_path):
    net = linear()
    path = save_model(tmp_path / "m.safetensors", torch.compile(net, backend="eager"), CARD)
    for given in (linear(), torch.compile(linear(), backend="eager"), nn.DataParallel(linear())):
        assert torch.equal(logits(load_model(path, net=given)[0]), logits(Classifier(net)))


class WithState(nn.Linear):
    def get_extra_state(self):
        return torch.qint8

    def set_extra_state(self, state):
        pass


def other_activation():
    net = small(dropout=0.0)
    net.features[0][2] = nn.Hardswish()
    return net


def other_head():
    net = small()
    net.head[-1] = nn.Sequential(net.head[-1])
    return net


def with_module_argument():
    net = small()
    object.__setattr__(net.architecture, "arguments", {"width": torch.float32})
    return net


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Sequential(nn.Flatten(), WithState(192, 2)), "tensors with numbers, got dtype for 1._extra_state"),
        (other_activation, "the network that its attribute `architecture`.*other logits"),
        (other_head, "a network whose file can be loaded again.*head"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "2, the number of classes of the data, got 3 logits"),
        (lambda: network("small_cnn", 3, 7), "2, the number of classes of the data, got 7 logits"),
        (with_module_argument, "a description that a safetensors file can hold"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_training(make, told, tmp_path):
    export = SafetensorsExport(str(tmp_path / "m.safetensors"))
    with pytest.raises(ValueError, match=rf"^(model\.)?net(\.classes)?: expected .*{told}"):
        trainer(tmp_path, export, Unwanted(), enable_checkpointing=False).fit(LitClassifier(make()), data())
    assert not list(tmp_path.iterdir())


def test_the_trial_export_leaves_the_training_as_it_is(tmp_path):
    weights = []
    for callbacks in ((), (SafetensorsExport(str(tmp_path / "m.safetensors")),)):
        torch.default_generator.manual_seed(0)
        model = LitClassifier(small(dropout=0.5))
        trainer(tmp_path, *callbacks, enable_checkpointing=False).fit(model, data())
        weights.append(logits(model))
    assert torch.equal(*weights)


def test_a_network_without_numbers_is_refused(tmp_path):
    with torch.device("meta"):
        net = linear()
    with pytest.raises(ValueError, match=r"^net: expected weights that are tensors with numbers, got the meta device"):
        save_model(tmp_path / "m.safetensors", net, CARD)
    with pytest.raises(ValueError, match=r"^net: expected weights with numbers, got the meta device"):
        LitClassifier(net).on_fit_start()


def test_a_network_that_was_changed_after_it_was_built_is_not_rebuilt(tmp_path):
    net = small()
    name, layer = next((name, each) for name, each in net.named_modules() if isinstance(each, torch.nn.ReLU))
    net.set_submodule(name, torch.nn.Tanh())
    path = fitted(tmp_path, LitClassifier(net))
    with pytest.raises(ValueError, match=r"net: .*load_from_checkpoint\(path, net=…\)"):
        LitClassifier.load_from_checkpoint(path)
    assert isinstance(layer, torch.nn.ReLU)


class NumPyArguments(RobustDataModule):
    def __init__(self, eps):
        super().__init__(data().dataset, train_perturbation=FGSM(eps), batch_size=6)
        self.save_hyperparameters()


def test_numpy_numbers_among_the_saved_arguments_can_be_read_again(tmp_path):
    path = fitted(tmp_path, LitClassifier(small(), schedule="constant"), NumPyArguments(np.float32(0.1)))
    resumed = trainer(tmp_path, epochs=2, enable_checkpointing=False)
    resumed.fit(LitClassifier(small(), schedule="constant"), NumPyArguments(np.float32(0.1)), ckpt_path=path)
    assert resumed.current_epoch == 2
