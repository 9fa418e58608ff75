"""Checkpoints of a user's own LightningModule by its class path, under both packages of Lightning."""

from __future__ import annotations

import functools
import os
import sys

import pytest
import torch
from test_pretrained import Runs
from torch import nn

from robustsigma import Classifier
from robustsigma.cli.parsing import new_parser
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.models import Pretrained, model

MODULES = """
import copy
import torch
from torch import nn
from torchvision.transforms import v2
from {package} import LightningModule
from robustsigma import Classifier

class Net(nn.Module):
    def __init__(self, width=2, classes=3):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))

class Lit(LightningModule):
    def __init__(self, width=2, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(width)

    def forward(self, x):
        return self.net(x)

class Template(LightningModule):
    '''As the Hydra template: the network and the optimizer are hyperparameters; no forward.'''

    def __init__(self, net, optimizer):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net
        self.ema = copy.deepcopy(net)
        with torch.no_grad():
            self.ema.head.bias += 1

class Normalizing(Lit):
    '''Normalizes in the step, outside of forward.'''

    def __init__(self):
        super().__init__()
        self.transform = v2.Compose([v2.Normalize([0.5] * 3, [0.2] * 3)])

class Inside(Normalizing):
    def forward(self, x):
        return self.net(self.transform(x))

class Own(LightningModule):
    def __init__(self):
        super().__init__()
        self.classifier = Classifier(Net(), mean=[0.1] * 3, std=[0.2] * 3)

    def forward(self, x):
        return self.classifier(x)
"""
GIVEN = {"mean": [0.4], "std": [0.3], "geometry": ResizeCrop(8)}


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def project(request, tmp_path, monkeypatch):
    """Put a user's project where it can be imported, and return a function that saves a module of it."""
    package = pytest.importorskip(request.param)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_project.py").write_text(MODULES.format(package=request.param))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))

    def save(kind, *args, change=lambda checkpoint: None, **kwargs):
        import my_project

        arguments = [getattr(my_project, each)() if isinstance(each, str) else each for each in args]
        module = getattr(my_project, kind)(*arguments, **kwargs).eval()
        checkpoint = {
            "state_dict": module.state_dict(),
            "pytorch-lightning_version": package.__version__,
            "hyper_parameters": dict(module.hparams),
            "epoch": 3,
        }
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "last.ckpt")
        return module, str(tmp_path / "last.ckpt")

    with torch.random.fork_rng(devices=[]):
        yield save
    sys.modules.pop("my_project", None)


def logits(classifier):
    with classifier.frozen():
        return classifier.logits(uniform())


def uniform():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_checkpoint_is_loaded_with_its_hyperparameters(project):
    module, path = project("Lit", width=5)
    before = torch.get_rng_state()
    classifier, card = model("my_project.Lit", weights=path, **GIVEN)
    assert torch.equal(torch.get_rng_state(), before)
    assert classifier.net.hparams["width"] == 5
    assert (card.classes, card.mean) == (("0", "1", "2"), (0.4,))
    expected = logits(Classifier(module, mean=[0.4], std=[0.3]))
    assert torch.equal(logits(classifier), expected)
    description = {"name": "my_project.Lit", "weights": path, "net": "net", **GIVEN}
    assert torch.equal(logits(model(description)[0]), expected)
    with pytest.raises(ValueError, match=r"^mean and std: expected the numbers .* none for my_project\.Lit"):
        model("my_project.Lit", weights=path)
    with pytest.raises(ValueError, match=r"^net: expected an attribute of Lit that is a network: net, got 'ema'"):
        model({**description, "net": "ema"})


def test_weights_of_other_modules(project, tmp_path):
    def lose(checkpoint):
        del checkpoint["state_dict"]["net.head.bias"]

    _, path = project("Lit", change=lose)
    with pytest.raises(ValueError, match=r"^weights: expected a checkpoint of Lit; .*net\.head\.bias"):
        model("my_project.Lit", weights=path, **GIVEN)
    with pytest.warns(UserWarning, match=r"net\.head\.bias"):
        assert model("my_project.Lit", weights=path, strict=False, **GIVEN)[1].classes == ("0", "1", "2")
    with pytest.raises(ValueError, match=r"^weights: expected a checkpoint of Lit; `arguments` gives"):
        model("my_project.Lit", weights=path, arguments={"width": 3}, strict=False, **GIVEN)
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    for file in ("bad.ckpt", "nowhere.ckpt"):
        with pytest.raises(ValueError, match=rf"^weights: expected .*{file}"):
            model("my_project.Lit", weights=str(tmp_path / file), **GIVEN)


@pytest.mark.filterwarnings("ignore:Attribute 'net' is an instance")  # Lightning's, of the user's module
def test_hyperparameters_that_are_code_are_allowed_by_name(project):
    module, path = project("Template", "Net", functools.partial(torch.optim.Adam, lr=0.1))
    given = {"weights": path, **GIVEN}
    with pytest.raises(ValueError, match=r"^weights: .* holds my_project\.Net; add --allow my_project\.Net if you"):
        model("my_project.Template", **given)
    with pytest.raises(ValueError, match=r"^net: expected the attribute that is the network: net, ema, got None, and"):
        model("my_project.Template", allow=["my_project"], **given)
    for name in ("net", "ema"):
        classifier, _ = model("my_project.Template", net=name, allow=["my_project"], **given)
        expected = Classifier(getattr(module, name), mean=[0.4], std=[0.3])
        assert torch.equal(logits(classifier), logits(expected))


@pytest.mark.parametrize("harm", [Runs, lambda path: functools.partial(os.mkdir, str(path)), lambda path: torch.load])
def test_code_in_a_checkpoint_is_not_run(harm, project, tmp_path):
    def add(checkpoint):
        checkpoint["hyper_parameters"]["lr"] = harm(tmp_path / "ran")

    _, path = project("Lit", change=add)
    with pytest.raises(ValueError, match=r"^weights: expected a checkpoint of tensors, plain values and code that is"):
        model("my_project.Lit", weights=path, allow=["my_project"], **GIVEN)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("kind", "net"), [("Normalizing", None), ("Normalizing", "net"), ("Inside", None)])
def test_normalization_is_that_of_the_module(kind, net, project):
    module, path = project(kind)
    classifier, card = model(f"my_project.{kind}", weights=path, net=net, geometry=ResizeCrop(8))
    assert (card.mean, card.std) == (((0.0,), (1.0,)) if kind == "Inside" else ((0.5,) * 3, (pytest.approx(0.2),) * 3))
    with torch.no_grad():
        expected = module.net(module.transform(uniform()))
    torch.testing.assert_close(logits(classifier), expected)


def test_a_module_with_a_classifier_says_everything(project):
    module, path = project("Own")
    classifier, card = model("my_project.Own", weights=path, geometry=ResizeCrop(8))
    assert card.mean == pytest.approx((0.1,) * 3)
    torch.testing.assert_close(logits(classifier), logits(module.classifier))


def test_a_command_line_describes_it(project):
    _, path = project("Lit")
    parser = new_parser("robustsigma")
    parser.add_argument("--models", type=dict[str, str | Pretrained])
    found = parser.parse_args([f'--models={{"mine": {{"name": "my_project.Lit", "weights": "{path}", "net": "net"}}}}'])
    assert parser.instantiate(found).models == {"mine": Pretrained("my_project.Lit", path, net="net")}


def test_a_module_is_no_lightning_module_by_its_name_alone():
    from robustsigma.models.lightning_checkpoint import is_lightning

    assert not is_lightning(nn.Linear)
    assert not is_lightning(len)
