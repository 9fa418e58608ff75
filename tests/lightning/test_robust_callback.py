"""RobustCallback: what the step is given, what is logged, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pictures import MEAN, QUIET, STD, Pictures, normalize, small_net
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassF1Score
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, GaussianNoise, Identity, Mixture, Perturbation, Sigma, SigmaSample
from robustsigma.data.loading import subsample
from robustsigma.engine import noise
from robustsigma.lightning import RobustCallback
from robustsigma.lightning.batch_images import PAIR, BatchField
from robustsigma.lightning.loader_subset import LoaderSubset
from robustsigma.lightning.robust_callback import stage_seed
from robustsigma.lightning.training_perturbation import batch_parts, perturb_parts

pytestmark = pytest.mark.third_party_rng
HALF = Mixture({GaussianNoise(0.1): 0.5})
NORMAL = {"train": HALF, "mean": MEAN, "std": STD}


class Module(pl.LightningModule):
    """A module that keeps what its steps are given."""

    def __init__(self, net=None, ema=None):
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.net, self.ema = net or small_net(), ema
        self.given, self.logged = [], []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        self.given.append(batch)
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return (self.ema or self.net)(batch[0]).argmax(1)

    test_step = validation_step

    def on_validation_end(self):
        self.logged.append([*self.trainer.callback_metrics])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(count=13, seed=0, transform=None, batch_size=5):
    return DataLoader(Pictures(count, seed, transform or normalize), batch_size)


def fit(callback, module=None, train=None, val=None, others=(), **options):
    module = module or Module()
    trainer = quiet_trainer(callback, *others, **options)
    trainer.fit(module, loader() if train is None else train, loader(seed=1) if val is None else val)
    return trainer, module


def normalized(**options):
    return RobustCallback(**{"mean": MEAN, "std": STD, **options})


def first(batch):
    return batch["in"][0]


Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    ("make", "places", "read"),
    [
        (lambda x, y: (x, y), (0, 1), lambda b: b[0]),
        (lambda x, y: ("name", x, y), (-2, -1), lambda b: b[1]),
        (lambda x, y: [x, y], (0, 1), lambda b: b[0]),
        (lambda x, y: {"x": x, "y": y}, ("x", "y"), lambda b: b["x"]),
        (Pair, ("x", "y"), lambda b: b.x),
        (Pair, (0, 1), lambda b: b.x),
        (Sample, ("x", "y"), lambda b: b.x),
        (lambda x, y: SimpleNamespace(x=x, y=y), ("x", "y"), lambda b: b.x),
        (lambda x, y: {"in": [x], "y": y}, ((first, lambda b, x: {**b, "in": [x]}), "y"), first),
        (lambda x, y: {"inputs": {"image": x}, "y": y}, (eval(PAIR), "y"), lambda b: b["inputs"]["image"]),
        (lambda x, y: {"in": [x], "y": y}, ((first, lambda b, x: b["in"].__setitem__(0, x)), lambda b: b["y"]), first),
    ],
)  # fmt: skip
def test_any_type_of_batch_keeps_its_type(make, places, read):
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    images, labels = (BatchField(name, place) for name, place in zip(("images", "labels"), places, strict=True))
    batch = make(x, y)
    assert images.get(batch) is x
    assert labels.get(batch) is y
    changed = images.put(batch, x + 1)
    assert type(changed) is type(batch)
    assert (read(changed) == 1).all()
    assert labels.get(changed) is y
    if not isinstance(places[0], tuple):
        assert read(batch) is x, "the loader's own batch was changed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_the_step_gets_perturbed_images_in_the_dtype_of_the_batch(dtype):
    class Cast(Module):
        def training_step(self, batch, batch_idx):
            images = batch[0]
            assert images.dtype == dtype
            self.given.append(images)
            scaled = normalize(images / 255) if dtype == torch.uint8 else images.float()
            return F.cross_entropy(self.net(scaled), batch[1])

    def prepared(image):
        return (image * 255).round().to(dtype) if dtype == torch.uint8 else normalize(image).to(dtype)

    clean = next(iter(loader(12, transform=prepared, batch_size=12)))
    _, module = fit(normalized(train=HALF), Cast(), loader(12, transform=prepared, batch_size=12), limit_val_batches=0)
    (given,) = module.given
    classifier = Classifier(small_net(), mean=MEAN, std=STD)
    floating = dtype.is_floating_point
    pixels = (
        (clean[0].to(torch.promote_types(dtype, torch.float32)) * classifier.std + classifier.mean)
        if floating
        else clean[0] / 255
    )
    seeds = noise.seeds(stage_seed(0, "train"), pixels.clamp(0, 1))
    parts = batch_parts(HALF, seeds, seeds, 0)
    expected = perturb_parts(parts, classifier, pixels.clamp(0, 1), clean[1]).images
    back = ((expected - classifier.mean) / classifier.std) if floating else (expected * 255).round()
    touched = (expected != pixels.clamp(0, 1)).flatten(1).any(1)
    assert 0 < touched.sum() < 12
    assert torch.equal(given[touched], back.to(dtype)[touched])
    assert torch.equal(given[~touched], clean[0][~touched])


def test_an_image_draws_the_same_in_any_batch_but_not_in_any_epoch():
    def images(module):
        return {tuple(x.flatten().tolist()) for batch in module.given for x in batch[0]}

    train = Mixture({GaussianNoise(0.1): 1.0})
    small, large = (fit(normalized(train=train), train=loader(batch_size=n))[1] for n in (3, 13))
    assert images(small) == images(large)
    _, other = fit(normalized(train=train, seed=1))
    assert not images(other) & images(small)
    _, twice = fit(normalized(train=train), epochs=2)
    assert len(images(twice)) == 26
    assert images(small) < images(twice)


def test_labels_may_be_probabilities():
    class Fixed(Perturbation):
        def perturb(self, classifier, x, y, seeds):
            seen.append(y)
            return Identity().perturb(classifier, x, y, seeds)

    seen: list[torch.Tensor] = []
    batches = [(normalize(torch.rand(4, 3, 8, 8)), torch.eye(3)[[2, 0, 1, 1]])]
    fit(normalized(train=Fixed()), train=DataLoader(batches, batch_size=None), limit_val_batches=0)
    assert seen[0].tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_it_is_a_callback_of_both_packages(name):
    package = pytest.importorskip(name)
    callback = normalized(train=HALF)
    assert isinstance(callback, package.Callback)
    trainer = package.Trainer(callbacks=callback, logger=False, enable_checkpointing=False, **QUIET)
    assert trainer.callbacks[0] is callback


class Seen(MeanMetric):
    """A metric that keeps the labels that it is given, each copy in a list of its own."""

    lists: ClassVar[list[list[int]]] = []

    def update(self, logits, labels):
        self.labels += labels.tolist()
        super().update((logits.argmax(1) == labels).float())

    def clone(self):
        copied = Seen()
        copied.labels = []
        self.lists.append(copied.labels)
        return copied


class Numbered(Pictures):
    """Pictures whose labels are their places."""

    def __init__(self, count):
        super().__init__(count, 1, normalize)
        self.labels = torch.arange(count)


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


@pytest.fixture
def measured():
    Seen.lists.clear()
    return Seen.lists


def measure(val, most=7, **options):
    callback = normalized(conditions={"clean": Identity()}, max_images=most, metric=Seen())
    fit(callback, Module(small_net(classes=24)), val=val, **{"epochs": 2, **options})


FEW = {"limit_val_batches": 3}


@pytest.mark.parametrize(
    ("most", "options", "count"), [(7, {}, 23), (1, {}, 23), (23, {}, 23), (22, {}, 23), (7, FEW, 15)]
)
def test_images_are_drawn_from_the_whole_loader_and_alike_in_every_epoch(most, options, count, measured):
    measure(DataLoader(Numbered(23), 5), most, num_sanity_val_steps=1, **options)
    assert measured == 2 * [subsample(count, most, 0)]


def test_each_loader_and_its_batches_of_any_kind(measured):
    ready = [next(iter(DataLoader(Numbered(6), 6))) for _ in range(4)]
    loaders = [
        DataLoader(Numbered(23), 5, drop_last=True),
        DataLoader(ready, batch_size=None),
        DataLoader(Numbered(3), 5),
    ]
    measure(loaders, epochs=1)
    assert measured == [subsample(20, 7, 0), [place % 6 for place in subsample(18, 7, 0)], [0, 1, 2]]


def test_a_combined_loader_is_one_unless_it_is_sequential(measured):
    def fit_combined(mode, sizes, place, **options):
        loaders = CombinedLoader({key: DataLoader(Numbered(n), 5) for key, n in sizes.items()}, mode)
        places = {} if place is None else {"images": lambda b: b[place][0], "labels": lambda b: b[place][1]}
        module = Module(small_net(classes=24))
        module.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
        options = {"max_images": 7, "metric": Seen(), **options, **places}
        return fit(normalized(conditions={"clean": Identity()}, **options), module, val=loaders)[0].callback_metrics

    assert [*fit_combined("min_size", {"a": 23, "b": 23}, "a")] == ["val/clean_Seen"]
    fit_combined("min_size", {"a": 23, "b": 13}, "a")
    fit_combined("max_size_cycle", {"a": 13, "b": 23}, "b", max_images=25)
    assert measured == [subsample(23, 7, 0), subsample(13, 7, 0), [*range(23)]]
    two = fit_combined("sequential", {"a": 23, "b": 13}, None, metric=None)
    assert [*two] == [f"val/clean_acc/dataloader_idx_{loader}" for loader in range(2)]


def test_the_first_images_of_a_stream_with_a_warning_if_it_has_more(measured):
    measure(DataLoader(Stream(Numbered(23)), 5), 23)
    measure(DataLoader(Stream(Numbered(23)), 5), 23, limit_val_batches=100)
    for most in (7, 22):
        with pytest.warns(UserWarning, match=f"max_images={most}: the first images of a stream are measured"):
            measure(DataLoader(Stream(Numbered(23)), 5), most, epochs=1)
    assert measured == 4 * [[*range(23)]] + [[*range(7)], [*range(22)]]


def test_a_validation_after_a_training_draws_from_its_own_loader(measured):
    callback = normalized(conditions={"clean": Identity()}, max_images=7, metric=Seen())
    trainer, module = fit(callback, Module(small_net(classes=24)), val=DataLoader(Stream(Numbered(5)), 5))
    trainer.validate(module, DataLoader(Numbered(23), 5), verbose=False)
    trainer.test(module, DataLoader(Numbered(13), 5), verbose=False)
    assert measured == [[*range(5)], subsample(23, 7, 0), subsample(13, 7, 0)]


def test_processes_that_take_images_in_turn_draw_together_what_one_draws():
    def drawn(rank, world):
        spread = LoaderSubset(7, 0, (6 / world, 6 / world), rank, world)
        rows = [spread.rows(4) + start for start in range(0, 24 // world, 4)]
        return [place * world + rank for place in torch.cat(rows).tolist()]

    assert sorted(drawn(0, 3) + drawn(1, 3) + drawn(2, 3)) == drawn(0, 1) == subsample(24, 7, 0)
    assert all(len(LoaderSubset(1, 0, (6, 6), rank, 2)._drawn(4)) == 1 for rank in range(2))


def test_where_the_last_batch_may_be_small_no_image_is_drawn_from_it_unless_all_are():
    assert LoaderSubset(24, 0, (5, 6))._drawn(4) == [*range(24)]
    assert LoaderSubset(7, 0, (5, 6))._drawn(4) == subsample(20, 7, 0)


def test_a_logged_accuracy_of_data_in_order_of_classes_is_that_of_the_whole():
    class Constant(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0, 0])

    data = Pictures(600, 1, normalize)
    data.labels = data.labels.sort().values
    callback = normalized(conditions={"clean": Identity()}, max_images=150)
    trainer = quiet_trainer(callback)
    (logged,) = trainer.validate(Module(Constant()), DataLoader(data, 50), verbose=False)
    assert logged["val/clean_acc"] == pytest.approx(float((data.labels == 0).float().mean()), abs=0.1)


def test_a_metric_of_ones_own_is_copied_for_each_condition():
    metric = MulticlassF1Score(3)
    trainer, module = fit(normalized(conditions={"a": Identity(), "b": FGSM(0.3)}, metric=metric))
    data = next(iter(loader(13, seed=1, batch_size=13)))
    module.eval()
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert sorted(logged) == ["val/a_MulticlassF1Score", "val/b_MulticlassF1Score"]
    assert logged["val/a_MulticlassF1Score"] == pytest.approx(float(metric(module(data[0]), data[1])))
    assert logged["val/b_MulticlassF1Score"] < logged["val/a_MulticlassF1Score"]


@pytest.mark.parametrize(
    ("every", "options", "measured"),
    [
        (2, {"epochs": 4}, [1, 3]),
        (2, {"epochs": 5}, [1, 3, 4]),
        (5, {"epochs": 2}, [1]),
        (2, {"epochs": 4, "val_check_interval": 0.5}, [1, 1, 3, 3]),
        (2, {"epochs": 6, "check_val_every_n_epoch": 2}, [1, 3, 5]),
        (3, {"epochs": 10, "check_val_every_n_epoch": 2}, [3, 5, 9]),  # due after 2, 5 and 8
        (2, {"epochs": 8, "check_val_every_n_epoch": 3}, [2, 5]),
        (3, {"epochs": 9, "check_val_every_n_epoch": None, "val_check_interval": 4}, [3, 5, 7]),
        (4, {"epochs": -1, "max_steps": 11}, [3, 4]),
        (2, {"epochs": 4, "train": DataLoader(Stream(Pictures(10, 0, normalize)), 5)}, [0, 1, 3]),
    ],
)
def test_it_measures_after_the_last_of_n_epochs_and_no_due_epoch_is_lost(every, options, measured):
    callback = Epochs(every)
    fit(callback, **{"train": loader(10), "val": loader(2), **options})
    assert callback.measured == measured


def test_a_resumed_training_measures_in_the_same_epochs(tmp_path):
    first, rest = Epochs(3), Epochs(3)
    fit(first, epochs=2)[0].save_checkpoint(tmp_path / "half.ckpt")
    quiet_trainer(rest, epochs=7).fit(Module(), loader(), loader(2), ckpt_path=tmp_path / "half.ckpt")
    assert (first.measured, rest.measured) == ([1] * 3, [2, 5, 6])


def test_a_callback_that_would_see_values_of_earlier_epochs_is_named(tmp_path):
    key = {"monitor": "val/clean_acc", "mode": "max"}
    told = "every_n_epochs=2: EarlyStopping monitors 'val/clean_acc' after the epochs in between"
    with pytest.warns(UserWarning, match=told):
        fit(Epochs(2), others=[EarlyStopping(**key, strict=False)])
    for every, options, other in (
        (2, {"check_val_every_n_epoch": 2}, EarlyStopping(**key)),
        (2, {"enable_checkpointing": True}, ModelCheckpoint(tmp_path, **key, every_n_epochs=2)),
        (2, {}, EarlyStopping("other", strict=False)),
        (1, {"check_val_every_n_epoch": None, "val_check_interval": 3}, EarlyStopping(**key)),
    ):
        fit(Epochs(every), others=[other], epochs=2, **options)


def test_searches_that_do_not_converge_are_a_warning():
    callback = normalized(conditions={"SIGMA": SigmaSample(Sigma(max_steps=1))})
    with pytest.warns(UserWarning, match="13 of 13 searches of SIGMA stopped before they converged") as caught:
        fit(callback, val=loader(), epochs=2)
    assert sum("searches of SIGMA" in str(each.message) for each in caught) == 1


def test_not_in_the_sanity_check():
    _, module = fit(normalized(conditions={"clean": Identity()}), num_sanity_val_steps=1)
    assert module.logged == [[], ["val/clean_acc"]]


def test_the_module_is_restored_after_an_error_and_can_train_again():
    class Fails(Module):
        fails = True

        def training_step(self, batch, batch_idx):
            if self.fails:
                raise KeyError("mine")
            return super().training_step(batch, batch_idx)

    module, callback = Fails(), normalized(train=HALF)
    with pytest.raises(KeyError, match="mine"):
        fit(callback, module)
    assert "training_step" not in vars(module)
    module.fails = False
    fit(callback, module)
    assert "training_step" not in vars(module)
    assert len(module.given) == 3


@pytest.mark.unsound_networks
def test_a_wrong_eval_net_is_named():
    module = Module(ema=small_net())
    with pytest.warns(
        UserWarning, match=r"RobustCallback: eval_net=None \(Module\): its logits are not those of 'ema'"
    ):
        fit(normalized(conditions={"clean": Identity()}), module, epochs=2)
    fit(normalized(conditions={"clean": Identity()}, eval_net="ema"), Module(ema=small_net()))
    fit(normalized(conditions={"clean": Identity()}, eval_net=lambda m: m.ema), Module(ema=small_net()))


ATTACK = Mixture({FGSM(0.05): 1.0})


def test_a_net_that_the_training_does_not_run_is_named():
    with pytest.warns(UserWarning, match="net='ema': .* but training_step does not run it") as caught:
        fit(normalized(train=ATTACK, net="ema"), Module(ema=small_net()))
    assert sum("RobustCallback" in str(each.message) for each in caught) == 1
    fit(normalized(train=ATTACK, net="net"))
    fit(normalized(train=HALF, net="ema"), Module(ema=small_net()))  # noise attacks no network


def test_a_forward_that_the_training_does_not_run_is_named():
    class Student(Module):
        """Trains another network than the one that `forward` evaluates."""

        def forward(self, images):
            return self.ema(images)

        def validation_step(self, batch, batch_idx):
            self(batch[0])

    with pytest.warns(UserWarning, match="net=None: .* but training_step does not run it"):
        fit(normalized(train=ATTACK), Student(ema=small_net()))


@pytest.mark.unsound_networks
@pytest.mark.parametrize(("own", "warned"), [(True, False), (False, True)])
def test_a_network_that_no_hook_sees_is_told_by_the_users_accuracy(own, warned):
    """The step evaluates a network that is no part of the module, and logs its accuracy."""

    class Hidden(Module):
        def validation_step(self, batch, batch_idx):
            net = self.net if own else hidden[0]
            correct = (net(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("val/acc", correct)
            self.log("val/top5_acc", 1.0)

    hidden = [nn.Sequential(nn.Flatten(), nn.Linear(192, 3))]
    hidden[0][1].bias.data = torch.tensor([0.0, 9.0, 0.0])
    module = Hidden()
    module.net[-1].bias.data = torch.tensor([0.0, 0.0, 9.0])  # every image is of class 2, of which there are fewer
    callback = normalized(conditions={"clean": Identity(), "FGSM": FGSM(0.1)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = quiet_trainer(callback)
        trainer.validate(module, loader(14, seed=1), verbose=False)
    told = [str(each.message) for each in caught if "RobustCallback: eval_net" in str(each.message)]
    assert len(told) == warned
    assert not told or "val/acc" in told[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": HALF}, r"images: expected pixels in \[0, 1\] after .*pass the mean and std .* RandomErasing leave"),
        ({"train": HALF, "images": "x"}, r"images: expected the place of the images in a batch, .* \(get, put\)"),
        ({**NORMAL, "labels": 5}, "labels: expected the place of the labels in a batch"),
        ({**NORMAL, "images": 1}, r"images: expected a tensor \(B, C, H, W\) at 1"),
        ({**NORMAL, "net": "nett"}, "net: expected an attribute of Module .*: net.* got 'nett'; did you mean 'net'"),
        ({**NORMAL, "conditions": {"a": HALF}, "eval_net": "enet"}, "eval_net: expected an attribute of Module"),
    ],
)  # fmt: skip
def test_the_first_batch_tells_a_wrong_setting(options, message):
    with pytest.raises(ValueError, match=message):
        fit(RobustCallback(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "train: expected a perturbation to train on, or conditions to measure, got neither"),
        ({"train": 0.5}, "train: expected a Perturbation or None"),
        ({"conditions": {"a": 1}}, r"conditions\['a'\]: expected a Perturbation"),
        ({"train": HALF, "mean": (127,)}, "mean: expected numbers for images in"),
        ({"train": HALF, "images": 0.5}, "images: expected an index, a key"),
        ({"train": HALF, "images": lambda b: b[0]}, r"images: expected a pair \(get, put\), .*for example"),
        ({"train": HALF, "net": nn.Flatten()}, "net: expected an attribute's name or a function"),
        ({"train": HALF, "max_images": 0}, "max_images: expected an integer of at least 1"),
        ({"train": HALF, "metric": F.cross_entropy}, "metric: expected a Metric or None"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RobustCallback(**options)


def test_a_module_without_forward_is_asked_for_its_network():
    class NoForward(Module):
        forward = pl.LightningModule.forward

    with pytest.raises(ValueError, match="net: expected the attribute that is the network: net, got None"):
        fit(normalized(train=HALF), NoForward())
    fit(normalized(train=HALF, net="net"), NoForward())


def test_a_module_whose_forward_takes_noise_is_asked_for_the_network_of_images():
    class Generator(Module):
        def forward(self, noise):
            return noise @ torch.zeros(100, 8)

    told = r"net: expected the network that takes images, by its name in the module, one of 'net' .* got None, and Gen"
    for callback in (normalized(train=Mixture({FGSM(0.1): 0.5})), normalized(conditions={"a": Identity()})):
        with pytest.raises(ValueError, match=told):
            fit(callback, Generator())
    fit(normalized(train=HALF, conditions={"a": Identity()}, net="net"), Generator())


def test_two_callbacks_that_train_are_refused():
    with pytest.raises(ValueError, match="callbacks: expected one RobustCallback with `train`"):
        fit(normalized(train=HALF), others=[normalized(train=HALF)])
    trainer, _ = fit(normalized(train=HALF), others=[normalized(conditions={"a": Identity()})])
    assert "val/a_acc" in trainer.callback_metrics


def test_statistics_of_images_that_are_not_normalized_are_doubted():
    with pytest.warns(
        UserWarning, match=r"before un-normalization .* If they are not normalized, leave mean and std out"
    ):
        fit(normalized(train=HALF), train=loader(transform=lambda image: image), limit_val_batches=0)


def test_networks_outputs_and_state_stay_apart():
    module, callback = Module(), normalized(train=HALF, conditions={"clean": Identity()})
    keys = [*module.state_dict()]
    fit(callback, module)
    assert [*module.state_dict()] == keys
    assert not any(hook for each in module.modules() for hook in each._forward_hooks)
    assert callback.state_dict() == {}
    copy.deepcopy(callback)


@pytest.mark.slow
class Epochs(RobustCallback):
    """Keeps the epochs that are measured."""

    def __init__(self, every):
        super().__init__(conditions={"clean": Identity()}, mean=MEAN, std=STD, every_n_epochs=every)
        self.measured = []

    def _measure(self, trainer, *rest):
        self.measured.append(trainer.current_epoch)
        super()._measure(trainer, *rest)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, of gradients of images
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_modules(whole):
    class Plain(Module):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1])

    module = Plain() if whole else Plain(torch.compile(small_net(), backend="eager"))
    compiled = torch.compile(module, backend="eager") if whole else module
    callback = normalized(train=HALF, conditions={"clean": Identity(), "FGSM": FGSM(0.05)})
    trainer = quiet_trainer(callback)
    trainer.fit(compiled, loader(12, batch_size=6), loader(12, 1, batch_size=6))
    data = next(iter(loader(12, 1, batch_size=12)))
    module.eval()
    expected = float((module(data[0]).argmax(1) == data[1]).float().mean())
    assert float(trainer.callback_metrics["val/clean_acc"]) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.unsound_networks
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_networks_are_compared_too():
    def compiled():
        net = small_net()
        net.compile(backend="eager")
        return net

    conditions = {"clean": Identity()}
    fit(normalized(conditions=conditions, eval_net="ema"), Module(compiled(), compiled()))
    with pytest.warns(UserWarning, match="its logits are not those of 'ema'"):
        fit(normalized(conditions=conditions), Module(compiled(), compiled()))
