"""`augment` resumes in a folder of the same model and images only, and takes labels from class folders."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustsigma.cli import main
from robustsigma.models import Architecture, ModelCard, save_model

ARCHITECTURE = Architecture("small_cnn", {"width": 4, "channels": 3, "classes": 2})


def _saved(path, seed):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = ARCHITECTURE.make(ARCHITECTURE.arguments)
    save_model(path, net, ModelCard(ARCHITECTURE, ("a", "b"), (3, 16, 16), (0.5,), (0.25,)))


@pytest.mark.third_party_rng  # rich draws a number when it is imported
def test_a_folder_of_samples_is_of_its_model_and_images(tmp_path, capsys):
    _saved(tmp_path / "net.safetensors", 0)
    image = tmp_path / "image.png"
    Image.new("RGB", (16, 16), (90, 0, 0)).save(image)
    command = ["augment", str(image), "--model", str(tmp_path / "net.safetensors"), "--perturbation", "FGSM"]
    command += ["--label", "a", "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(command) == 0
    Image.new("RGB", (16, 16), (0, 90, 0)).save(image)
    assert main(command) == 2
    assert "the data (images and labels) of the run" in " ".join(capsys.readouterr().err.split())
    Image.new("RGB", (16, 16), (90, 0, 0)).save(image)
    _saved(tmp_path / "net.safetensors", 1)
    assert main(command) == 2
    assert "the network weights of the run" in " ".join(capsys.readouterr().err.split())


def test_class_folders_label_the_images_in_them(tmp_path):
    _saved(tmp_path / "net.safetensors", 0)
    folder, shade = tmp_path / "images", 0
    for name in ("a", "b/left", "other"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), (shade := shade + 40, 0, 0)).save(folder / name / f"{number}.png")

    def labels(*images, out):
        command = ["augment", *map(str, images), "--model", str(tmp_path / "net.safetensors")]
        assert main([*command, "--perturbation", "Identity", "--out", str(tmp_path / out)]) == 0
        with (tmp_path / out / "manifest.csv").open(encoding="utf-8", newline="") as file:
            return [(Path(row["file"]).parent.name, row["label"]) for row in csv.DictReader(file)]

    both = [("000_a", "a"), ("001_b", "b")]
    assert labels(folder / "a", folder / "b", out="both") == [both[0], both[0], both[1], both[1]]
    assert (
        labels(folder / "b" / "left" / "0.png", folder / "a" / "1.png", "--label", "a", out="stated") == [both[0]] * 2
    )
    with pytest.warns(UserWarning, match=r"^label: 2 of 6 images lie in no folder of a class .*model's predictions"):
        found = labels(folder, out="all")
    assert found[:4] == [both[0], both[0], both[1], both[1]]
    assert set(found[4:]) <= {*both}
