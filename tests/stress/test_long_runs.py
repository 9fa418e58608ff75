"""Long runs leak nothing: no memory, tensor, hook, file, thread or process. Slow tests run longer."""

import gc
import multiprocessing
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import cases
import pytest
import pytorch_lightning as pl
import torch
from torchvision.models.vision_transformer import VisionTransformer

import robustsigma.engine.attributors as public
from robustsigma import FGSM, Classifier, GaussianNoise, Mixture, MixtureComponent, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.evaluation.training import quiet, quiet_trainer
from robustsigma.lightning import AugmentationStatistics, LitClassifier, RobustDataModule
from robustsigma.models import network

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.third_party_rng,  # loaders
]
CHEAP = {
    "AGI": {"steps": 3, "classes": 2},
    "CrediblePath": {"steps": 3, "max_search": 3},
    "ExpectedGradients": {"draws": 4},
    "GuidedIntegratedGradients": {"steps": 6},
    "IDG": {"steps": 8},
    "IG2": {"steps": 6},
    "IntegratedGradients": {"steps": 6},
    "LeftIntegratedGradients": {"steps": 6},
    "Sigma": {"max_steps": 6, "paths": 2, "objective": "logit"},
}
THIS = Path(__file__)
METHODS = sorted(set(public.__all__) - {"Attribution", "Attributor", "FunctionMethod"})  # a function is the user's own
KEPT = ("files", "threads", "children", "hooks")
NOTHING = dict.fromkeys((*KEPT, "tensors", "tensor_bytes"), 0)
WALK = Sigma(alpha=0.03, beta=0.1, objective="logit", paths=1, max_steps=5)


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    gc.collect()
    gc.freeze()  # objects that other tests hold need not be searched at each count
    yield
    gc.unfreeze()


def counts(net=None):
    """Return how many tensors, bytes, files, threads, processes and hooks are alive."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated objects warn when they are inspected
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = () if net is None else net.modules()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_kb": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "tensors": len(tensors),
        "tensor_bytes": sum(each.nbytes for each in tensors if each.layout == torch.strided),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208  the listing itself always holds one open
        "threads": threading.active_count(),
        "children": len(multiprocessing.active_children()),
        "hooks": sum(len(getattr(module, kind)) for module in modules for kind in kinds),
    }


def difference(after, before):
    return {name: after[name] - before[name] for name in before}


def growth(call, times, warm, net=None):
    """Call a function `warm` times, then `times` times, and return how much each count grew in the second part."""
    for number in range(warm):
        call(number)
    before = counts(net)
    for number in range(warm, warm + times):
        call(number)
    return difference(counts(net), before)


def classifier(seed, method=""):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if method in ("AttentionAttribution", "AttentionRollout", "LeGrad"):
            net = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)
        else:
            net = network("small_cnn", 3, 5, {"width": 4})
    return Classifier(net, mean=[0.5], std=[0.25])


def explain(method, clf, seed):
    images, labels = cases.images(4, size=16), cases.labels(4, classes=5)
    extra = {"references": cases.images(3, size=16, seed=1)} if method in ("ExpectedGradients", "IG2") else {}
    getattr(public, method)(**CHEAP.get(method, {}), **extra)(clf, images, labels, seed=seed).heatmap()


def attributors_growth(times, warm):
    found = {}
    for name in METHODS:
        clf = classifier(0, name)
        found[name] = growth(lambda seed, name=name, clf=clf: explain(name, clf, seed), times, warm, clf)
    return found


def networks_growth(times, warm):
    """Return the growth over networks that are explained once and released."""
    return growth(lambda seed: [explain(name, classifier(seed), seed) for name in ("Sigma", "IDG")], times, warm)


class Counter(pl.Callback):
    """Adds counts to `found` after every `every` steps."""

    def __init__(self, every, found):
        self.every, self.found = every, found

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step % self.every == 0:
            self.found.append(counts(pl_module))


def train(steps, folder, *callbacks):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = LitClassifier(network("small_cnn", 3, 5, {"width": 4}), mean=[0.5], std=[0.25])
        parts = [MixtureComponent(GaussianNoise(0.1), 0.2), MixtureComponent(FGSM(0.03, random_start=True), 0.2)]
        parts += [
            MixtureComponent(SigmaSample(WALK), 0.1),
            MixtureComponent(SigmaSample(WALK, cache=SampleCache(max_age=3)), 0.2),
        ]
        dataset = Baggage(size=16, train=80, val=5, test=5)
        data = RobustDataModule(dataset, train_perturbation=Mixture(parts), batch_size=8, num_workers=1)
        with quiet():
            trainer = quiet_trainer(
                [AugmentationStatistics(), *callbacks], max_steps=steps, limit_val_batches=0, default_root_dir=folder
            )
            trainer.fit(model, data)


def check_training(steps, folder):
    """Check a training after its first quarter, when caches are full; return how much each count grew."""
    train(12, folder)  # objects made on first use stay
    before, course = counts(), []
    train(steps, folder, Counter(steps // 20, course))  # not kept here, as a callback holds the network
    deadline = time.monotonic() + 20
    while (after := counts())["files"] > before["files"] and time.monotonic() < deadline:
        time.sleep(0.2)  # the system takes a while to close what a loading process had open
    grown = difference(course[-1], course[len(course) // 4])
    assert {name: grown[name] for name in KEPT} == dict.fromkeys(KEPT, 0)
    assert abs(grown["tensors"]) <= 12  # batches differ in size, and the sample cache fills up
    assert course[-1]["children"] == 1
    for name in ("files", "threads", "children", "tensors"):
        assert after[name] <= before[name], name
    return grown


@pytest.mark.slow
def test_attributors_leave_nothing_behind():
    for name, grown in attributors_growth(times=4, warm=2).items():
        assert {what: grown[what] for what in NOTHING} == NOTHING, name


def test_released_networks_leave_nothing_behind():
    grown = networks_growth(times=6, warm=3)
    assert {what: grown[what] for what in NOTHING} == NOTHING


@pytest.mark.slow
def test_training_with_augmentation_and_a_cache_does_not_grow_and_its_workers_end(tmp_path):
    check_training(60, tmp_path)


def test_the_counts_see_leaks():
    held, net = [], torch.nn.Identity()

    def leak(number):
        held.append((torch.zeros(1000), THIS.open()))
        net.register_forward_hook(lambda *_: None)

    try:
        grown = growth(leak, 3, 1, net)
        wanted = {"tensors": 3, "tensor_bytes": 12_000, "files": 3, "hooks": 3}
        assert {what: grown[what] for what in wanted} == wanted
    finally:
        for _, file in held:
            file.close()


@pytest.mark.slow
def test_memory_does_not_grow(tmp_path):
    rows = {
        **attributors_growth(times=200, warm=20),
        "networks": networks_growth(times=200, warm=20),
        "training": check_training(2000, tmp_path),
        "trainings": growth(lambda _: train(12, tmp_path), 20, 3),
    }
    for name, grown in rows.items():
        assert grown["resident_kb"] < 8_000, name
        assert grown["files"] == grown["threads"] == grown["hooks"] == 0, name
        assert abs(grown["tensors"]) <= 12, name
