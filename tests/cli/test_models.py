"""`explain` and `augment` with networks that were trained elsewhere: one command, no configuration."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import robustsigma.cli.augment
import robustsigma.cli.explain  # noqa: F401 what they import draws from the global generators, which is watched
from robustsigma.cli import main
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.models import Architecture, ModelCard, model, save_model

pytestmark = pytest.mark.filterwarnings("ignore:.*what is published for")
NAME = "torchvision:squeezenet1_1"
VIT = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1().half().state_dict(), folder / "w.pth")
        torch.save(torchvision.models.VisionTransformer(**VIT, num_classes=3).state_dict(), folder / "vit.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def explained(out):
    (entry,) = json.loads((out / "manifest.json").read_text("utf-8"))["images"]
    with Image.open(out / entry["picture"]) as picture:
        picture.load()
    return entry


def test_a_photograph_is_explained_in_one_command(made, tmp_path, capsys):
    arguments = ["explain", f"{made}/photo.png", "--model", NAME, "--weights", f"{made}/w.pth",
                 "--method=IntegratedGradients", "--method.steps=1"]  # fmt: skip
    assert main([*arguments, f"--out={tmp_path}"]) == 0, capsys.readouterr().err
    entry = explained(tmp_path)
    classifier, card = model(NAME, weights=f"{made}/w.pth")
    with Image.open(made / "photo.png") as photo:
        crop = np.array(ResizeCrop(224, 256).apply(photo))
    with classifier.frozen():
        p = classifier.logits(torch.from_numpy(crop).permute(2, 0, 1)[None] / 255).softmax(1)[0]
    assert entry["predicted"][0]["class"] == card.classes[int(p.argmax())]
    assert entry["predicted"][0]["confidence"] == pytest.approx(float(p.max()), abs=1e-6)
    assert not entry["predicted"][0]["class"].isdecimal()


def test_a_vision_transformer_and_its_attention(made, tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    arguments = ["explain", f"{made}/photo.png", "--model=torchvision.models.VisionTransformer",
                 f"--weights={made}/vit.pth", f"--arguments={json.dumps(VIT)}", f"--classes={tmp_path}/names.txt",
                 "--geometry.size=16", "--mean=[0.5]", "--std=[0.5]", "--method=AttentionRollout"]  # fmt: skip
    assert main([*arguments, f"--out={tmp_path}/out"]) == 0
    assert explained(tmp_path / "out")["predicted"][0]["class"] in ("ant", "bee", "cat")


def test_an_assumed_image_size_is_told(made, tmp_path):
    arguments = ["explain", f"{made}/photo.png", "--model=torchvision.models.squeezenet1_1", f"--weights={made}/w.pth",
                 "--mean=[0.5]", "--std=[0.5]", "--method=Gradient", f"--out={tmp_path}"]  # fmt: skip
    with pytest.warns(UserWarning, match="geometry: .* cropped to 224, .*; --geometry.size N"):
        assert main(arguments) == 0


def test_augment_takes_them_too(made, tmp_path, capsys):
    arguments = ["augment", f"{made}/photo.png", "--model", NAME, f"--weights={made}/w.pth", "--geometry.size=32",
                 "--perturbation=GaussianNoise", "--label=0", f"--out={tmp_path}/out"]  # fmt: skip
    assert main(arguments) == 0
    with (tmp_path / "out" / "manifest.csv").open() as file:
        (row,) = csv.DictReader(file)
    with Image.open(tmp_path / "out" / row["file"]) as picture:
        assert picture.size == (32, 32)
    assert main([*arguments, "--padding=same"]) == 2
    assert "out: expected a new folder" in capsys.readouterr().err


MISTAKES = {
    "no such file": (["--model", NAME, "--weights=nowhere.pth"], "weights: expected an existing file"),
    "weights of another": (
        ["--model=torchvision:squeezenet1_0", "--weights={made}/w.pth"],
        "weights: expected those of",
    ),
    "no statistics": (["--model=torchvision.models.squeezenet1_1"], "mean and std: expected the numbers"),
    "no such network": (["--model=torchvision:resnet49"], "the name of a torchvision model"),
    "no such class": (["--model=nothing.Here", "--mean=[0]", "--std=[1]"], "model: expected FILE.safetensors"),
    "no such allowed class": (
        ["--model=nothing.Here", "--mean=[0]", "--std=[1]", "--allow=nothing"],
        "architecture.name: expected",
    ),
    "options of a saved model": (["--model={made}/mine.safetensors", "--mean=[0]", "--std=[1]"], "expected no option"),
    "a network not allowed": (["--model={made}/mine.safetensors"], "--allow "),
    "another allowed": (["--model={made}/mine.safetensors", "--allow=torch.optim"], "--allow "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(mistake, made, tmp_path, capsys):
    card = ModelCard(Architecture("torch.nn.Identity"), ("a", "b"), (3, 8, 8))
    save_model(made / "mine.safetensors", torch.nn.Identity(), card)
    arguments, told = MISTAKES[mistake]
    given = [argument.format(made=made) for argument in arguments]
    assert main(["explain", f"{made}/photo.png", *given, f"--out={tmp_path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_network_that_is_allowed_is_built(made, tmp_path, capsys):
    card = ModelCard(Architecture("torch.nn.Identity"), ("a", "b"), (3, 8, 8))
    save_model(made / "mine.safetensors", torch.nn.Identity(), card)
    allowed = [
        "explain",
        f"{made}/photo.png",
        f"--model={made}/mine.safetensors",
        "--allow=math",
        "--allow",
        "torch.nn",
    ]
    assert main([*allowed, f"--out={tmp_path}"]) == 2
    assert "net: expected logits" in capsys.readouterr().err, "it was built, and is no classifier"
