"""Benchmarks of networks that were trained elsewhere, on photographs that a table lists."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from rich.console import Console

from robustsigma.benchmarking.run import BenchmarkRun
from robustsigma.cli import main
from robustsigma.cli.benchmark import PRESETS
from robustsigma.data import ImageTable
from robustsigma.data.resize_crop import ResizeCrop
from robustsigma.models import Pretrained, save_model

pytestmark = pytest.mark.filterwarnings("ignore:.*what is published for")
NAME = "torchvision:squeezenet1_1"
GEOMETRY = {"size": 32, "resize": 36}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write weights, a model saved here, and photographs of which two of three are labeled as the network says."""
    folder = tmp_path_factory.mktemp("photographs")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1().state_dict(), folder / "w.pth")
    description = Pretrained(NAME, weights=str(folder / "w.pth"), geometry=ResizeCrop(**GEOMETRY))
    classifier, card = description.load()
    save_model(folder / "saved.safetensors", classifier.net, card)
    (folder / "images").mkdir()
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")

    def table(cells):
        with (folder / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *((f"{i}.png", cell) for i, cell in enumerate(cells))])

    table(["0"] * 9)
    source = ImageTable(str(folder), images="images").adapt_to_model(card.classes, card.geometry)
    dataset = source.split("test")
    with classifier.frozen():
        said = classifier.logits(torch.stack([dataset[i][0] for i in range(9)])).argmax(1).tolist()
    table([f"{(s + 1) % 1000};{s}" if i % 3 else str((s + 1) % 1000) for i, s in enumerate(said)])
    (folder / "said.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def settings(folder):
    """Return settings as a YAML file has them."""
    described = {"name": NAME, "weights": str(folder / "w.pth"), "geometry": GEOMETRY}
    return {
        "dataset": {
            "class_path": "robustsigma.data.ImageTable",
            "init_args": {"root": str(folder), "images": "images"},
        },
        "models": {"described": described, "saved": str(folder / "saved.safetensors")},
        "methods": {"EG": {"class_path": "robustsigma.ExpectedGradients", "init_args": {"draws": 2}}},
        "metrics": [{"class_path": "robustsigma.engine.metrics.InsertionDeletion", "init_args": {"step": 512}}],
        "images": 4,
        "checked": 0,
        "batch_size": 3,
    }


def run_of(settings, out):
    found = PRESETS.load("baggage", ["--config", yaml.safe_dump(settings)])
    return BenchmarkRun(found, out, Console(quiet=True))


def test_from_yaml_to_report(settings, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    assert main(["benchmark", "--config", str(tmp_path / "mine.yaml"), f"--out={tmp_path}/out"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["dataset"]["shape"] == [3, 32, 32]
    assert len(found["dataset"]["classes"]) == 1000
    assert found["dataset"]["images"] == 4
    assert found["dataset"]["masks"] is False
    assert found["settings"]["models"]["described"]["weights"] == str(folder / "w.pth")
    values = {(cell["model"], cell["method"], cell["metric"]): cell["mean"] for cell in found["cells"]}
    for method in ("EG", "gradient"):
        assert values["described", method, "insertion"] == pytest.approx(values["saved", method, "insertion"], abs=1e-6)


def test_right_is_who_says_any_of_the_right_classes_and_that_is_explained(settings, folder, tmp_path):
    run = run_of({**settings, "images": 9}, tmp_path / "out")
    said = json.loads((folder / "said.json").read_text())
    assert run.evaluated.indices == [1, 2, 4, 5, 7, 8]
    assert run.evaluated.targets["described"].tolist() == [said[i] for i in run.evaluated.indices]
    assert run.evaluated.labels.tolist() == [(said[i] + 1) % 1000 for i in run.evaluated.indices]
    assert sum(run.evaluated.correct["described"]) == 6


def test_references_are_images_that_are_not_evaluated(settings, tmp_path, folder):
    run = run_of({**settings, "references": 20}, tmp_path / "out")
    references = run.methods["EG"].references.tensor
    evaluated = torch.stack([run.split[i][0] for i in run.evaluated.indices])
    assert len(references) == 9 - len(run.evaluated.indices)
    assert not any(torch.equal(a, b) for a in references for b in evaluated)
    said = json.loads((folder / "said.json").read_text())
    rows = [("file", "label"), *((f"{i}.png", label) for i, label in enumerate(said))]
    with (folder / "right.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    settings["dataset"]["init_args"]["table"] = "right.csv"
    run = run_of({**settings, "images": 9}, tmp_path / "all")
    with pytest.raises(ValueError, match=r"^images: expected fewer than all images"):
        _ = run.methods
    run = run_of({**settings, "images": 9, "methods": {}}, tmp_path / "none")
    assert set(run.methods) == {"gradient", "random"}, "nobody compares, so that none is missing"


def test_models_of_different_geometry_need_one_that_is_for_all(settings, tmp_path):
    models = settings["models"]
    models["other"] = {**models["described"], "geometry": {"size": 32, "resize": 40}}
    expected = r"^models\.other: expected images of 32 pixels of 36 \(bilinear\).*, got 32 pixels of 40"
    with pytest.raises(ValueError, match=expected):
        _ = run_of(settings, tmp_path / "a").dataset
    settings["dataset"]["init_args"]["geometry"] = {"size": 32, "resize": 33, "interpolation": "bicubic"}
    run = run_of(settings, tmp_path / "b")
    assert run.dataset.geometry == ResizeCrop(32, 33, "bicubic")
    assert run.dataset.classes[0] == "tench"
    models["other"]["geometry"] = {"size": 48}
    with pytest.raises(ValueError, match=r"^models\.other: expected a model of \(3, 32, 32\) and 1000 classes"):
        _ = run_of(settings, tmp_path / "c").dataset


def test_a_folder_is_of_its_weights(settings, folder, tmp_path):
    run_of(settings, tmp_path / "out")
    other = tmp_path / "w.pth"
    other.write_bytes((folder / "w.pth").read_bytes() + b" ")
    settings["models"]["described"]["weights"] = str(other)
    with pytest.raises(ValueError, match=r"^out: expected a new folder"):
        run_of(settings, tmp_path / "out")
    settings["models"] = {"published": NAME, "none": {"name": NAME, "weights": "nowhere.pth"}}
    with pytest.raises(ValueError, match=r"^weights: expected an existing file of weights, got nowhere.pth"):
        run_of(settings, tmp_path / "new")
