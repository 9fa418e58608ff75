"""What tells networks, datasets and code from others, and what does not."""

import copy
import importlib
import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from robustsigma import FGSM, Identity
from robustsigma.data import Datasets, ImageFolder
from robustsigma.data.dataset_spec import ArrayDataset
from robustsigma.engine.perturbations import Mixture, Perturbation
from robustsigma.runs.fingerprint import code, describe, files, items, network

CLASSES = ("a", "b", "c")


def _drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(_drawn(3, 12))
        self.register_buffer("shift", torch.zeros(3), persistent=False)

    def forward(self, x):
        return self.scale * (x.flatten(1) @ self.weight.T + self.shift)


class Turned(Net):
    def forward(self, x):
        return super().forward(x.flip(-1))


def _changed(change):
    net = Net()
    with torch.no_grad():
        change(net)
    return net


OTHERS = {
    "weight": lambda: _changed(lambda net: net.weight[2, 11].add_(1e-6)),
    "buffer that is not saved": lambda: _changed(lambda net: net.shift[0].add_(1)),
    "attribute": lambda: Net(2.0),
    "forward": Turned,
    "precision": lambda: Net().double(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_other_ones(kind):
    assert network(OTHERS[kind](), (3, 2, 2)) != network(Net(), (3, 2, 2))


def test_a_network_is_itself_whatever_its_mode_and_is_left_as_it_was():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), Net())
    state = copy.deepcopy(net.state_dict())
    found = network(net, (3, 2, 2))
    assert network(copy.deepcopy(net).eval(), (3, 2, 2)) == found
    assert all(module.training for module in net.modules())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert len(found["logits"]) == 6


def test_random_and_failing_networks_have_no_logits():
    class Random(Net):
        def forward(self, x):
            return super().forward(x) + np.random.default_rng().normal()

    assert network(Random(), (3, 2, 2))["logits"] is None
    assert network(Net(), (3, 5, 5))["logits"] is None


class Listed(Dataset):
    def __init__(self, entries, labels=None):
        self.entries = entries
        if labels is not None:
            self.targets = labels

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]


def _tensors(count=20, seed=0):
    return TensorDataset(_drawn(count, 3, 4, 4, seed=seed), torch.arange(count) % 3)


def _pictures(count=20, value=7):
    return [(Image.new("RGB", (4, 4), (i % 250, value, 0)), i % 3) for i in range(count)]


def _one(dataset, place):
    """Return the dataset with another pixel at a place."""
    images = dataset.tensors[0].clone()
    images[place, 0, 0, 0] = 1 - images[place, 0, 0, 0]
    return TensorDataset(images, dataset.tensors[1])


def _fingerprint(dataset):
    return Datasets(test=dataset, classes=CLASSES).fingerprint()


def test_the_same_content_is_the_same_dataset():
    for make in (_tensors, lambda: Listed(_pictures()), lambda: Subset(_tensors(), range(3, 9))):
        assert _fingerprint(make()) == _fingerprint(make())
    assert repr(Datasets(_tensors(), classes=CLASSES)) == "Datasets(train=20, classes=['a', 'b', 'c'])"
    source = Datasets(_tensors(), classes=CLASSES)
    assert describe(source) == repr(source)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_tensors(), _tensors(seed=1)),
        (_tensors(), _tensors(count=19)),
        (_tensors(), _one(_tensors(), 11)),
        (_tensors(2000), _one(_tensors(2000), 1001)),  # not among those that are read
        (_tensors(), TensorDataset(_tensors().tensors[0], torch.arange(20).flip(0) % 3)),
        (Listed(_pictures()), Listed(_pictures(value=8))),
        (Listed(_pictures()), Listed([(image, 2) for image, _ in _pictures()])),
        (Listed(_pictures(600), list(range(600))), Listed(_pictures(600), [*range(599), 0])),
        (Subset(_tensors(), range(10)), Subset(_tensors(), range(1, 11))),
        (Subset(_tensors(2000), range(1999)), Subset(_one(_tensors(2000), 1001), range(1999))),
        (ConcatDataset([_tensors(2000)]), ConcatDataset([_one(_tensors(2000), 1001)])),
        (
            ArrayDataset(torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)),
            ArrayDataset(
                torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64),
                torch.ones(5, 2, 2, dtype=torch.bool),
            ),
        ),
    ],
)  # fmt: skip
def test_other_content_is_another_dataset(first, second):
    assert _fingerprint(first) != _fingerprint(second)


def test_other_names_of_classes_are_another_dataset():
    assert _fingerprint(_tensors()) != Datasets(test=_tensors(), classes=("a", "c", "b")).fingerprint()


def test_masks_count():
    class Masked(Listed):
        filled = 0.0

        def mask(self, index):
            return torch.full((4, 4), self.filled)

    first, second = Masked(_pictures()), Masked(_pictures())
    second.filled = 1.0
    assert _fingerprint(first) != _fingerprint(second)


@pytest.mark.parametrize("own", [False, True])
def test_random_transforms_do_not_make_it_another(own):
    generator = np.random.default_rng()

    class Random(Listed):
        def __getitem__(self, index):
            _, label = super().__getitem__(index)
            draw = generator.random() if own else torch.rand(()).item() + random.random()
            return torch.full((3, 4, 4), draw / 2), label

    before = torch.get_rng_state()
    found = items(Random(_pictures()))
    assert found == items(Random(_pictures()))
    assert (found["images"] is None) == own
    assert found != items(Random([(image, 1) for image, _ in _pictures()]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.bmp")
    return tmp_path


def test_a_folder_is_of_its_files(folder):
    source = ImageFolder(str(folder), size=8)
    before = source.fingerprint()
    (folder / "notes.txt").write_text("not an image")
    (folder / "cat" / "0.bmp").touch()
    assert source.fingerprint() == before
    path = folder / "dog" / "3.bmp"
    content = path.read_bytes()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(path)  # of the same size
    assert len(path.read_bytes()) == len(content)
    assert source.fingerprint() != before
    path.write_bytes(content)
    assert source.fingerprint() == before
    path.rename(folder / "cat" / "9.bmp")
    assert source.fingerprint() != before


def test_missing_files_are_for_the_reader_to_name(tmp_path):
    assert files([tmp_path / "none.png"], tmp_path)["count"] == 1


@dataclass(frozen=True)
class Mine(Perturbation):
    size: float = 0.1

    def perturb(self, classifier, images, labels, seeds):
        raise NotImplementedError


def baseline(images):
    return images


def test_code_of_yours_counts_and_that_of_the_package_does_not():
    assert code({"a": FGSM(0.1), "b": Identity(), "c": [nn.ReLU(), 3, "x", None, torch.zeros(1)]}) == {}
    found = code({"mine": Mixture({Mine(): 0.5}), "function": partial(baseline)})
    assert set(found) == {f"{__name__}.Mine", f"{__name__}.baseline"}
    first, second = {"__name__": "typed"}, {"__name__": "typed"}
    exec("def drawn(x):\n    return x + 1", first)
    exec("def drawn(x):\n    return x + 2", second)
    assert code(first["drawn"]) != code(second["drawn"])
    assert code(first["drawn"]) == code(first["drawn"])


class Plain:
    def __init__(self, value):
        self.value = value


def test_settings_are_described_by_what_they_hold():
    big = np.zeros(5000)
    other = big.copy()
    other[2500] = 1
    for first, second in ((big, other), (Net(), OTHERS["weight"]()), (Plain(1), Plain(2)), ({1}, {2})):
        assert describe(first) != describe(second)
        assert describe(first) == describe(copy.deepcopy(first))
    assert describe(np.float32(0.5)) == 0.5
    assert "0x" not in str(describe([baseline, partial(baseline), Plain(Plain(3))]))


def test_constants_and_functions_that_a_class_uses_are_part_of_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    lines = ["S = {}", "def scaled(x): return {} * x", "class Mine:", "    def run(self, x): return scaled(x) + S"]
    found = []
    for number, (s, factor) in enumerate([(0.1, 1), (0.9, 1), (0.1, 2), (0.1, 1)]):
        name = f"used_code_{number}"
        (tmp_path / f"{name}.py").write_text("\n".join(lines).format(s, factor))
        found.append(next(iter(code(importlib.import_module(name).Mine()).values())))
    assert found[0] == found[3]
    assert len(set(found)) == 3
