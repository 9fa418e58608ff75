"""The gallery in its fast form: on scans with a new network, and on photographs with a given one."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import generator
from PIL import Image
from torchvision.models import squeezenet1_1

from robustsigma.engine.attributors import __all__ as public

_SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "gallery.py"
TRANSFORMERS = {"attention rollout", "attention attribution", "LeGrad"}  # methods for these alone
_SPEC = importlib.util.spec_from_file_location("gallery_script", _SCRIPT)
gallery = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)  # dataclasses look their module up there
_SPEC.loader.exec_module(gallery)


def read(folder):
    with Image.open(folder / "gallery.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=float)
    return json.loads((folder / "gallery.json").read_text()), pixels


def check(found, pixels, images, skipped):
    records = {record["name"]: record for record in found["methods"]}
    used = {record["settings"].split("(")[0] for record in records.values()}
    assert used == set(public) - {"Attribution", "Attributor", "CaptumMethod", "FunctionMethod"}
    assert {name for name, record in records.items() if "skipped" in record} == skipped
    for name in records.keys() - skipped:
        record = records[name]
        for key in ("gap", "drop", "forwards", "backwards", "steps"):
            assert len(record[key]) == images
        assert 0 <= record["converged"] <= 1
        assert record["seconds"] >= 0
    assert max(records["SIGMA"]["gap"]) < 1e-3
    height, width, _ = pixels.shape
    assert height / (len(records) - len(skipped) + 1) > 80  # a row for the images and for each method
    assert width / (images + 1) > 80
    assert pixels.std() > 10


@pytest.mark.slow
def test_scans(tmp_path):
    gallery.main(["--fast", "--out", str(tmp_path / "first")])
    found, pixels = read(tmp_path / "first")
    check(found, pixels, 2, TRANSFORMERS)
    assert found["tested"] == 40
    assert 0 <= found["accuracy"] <= 1
    assert len(found["predictions"]) == 2


@pytest.mark.slow
def test_photographs(tmp_path):
    pixels = torch.randint(256, (230, 300, 3), generator=generator(0), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "0.png")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        weights = squeezenet1_1(num_classes=4).half().state_dict()
    torch.save(weights, tmp_path / "net.pt")
    options = ["--network", "torchvision:squeezenet1_1", "--weights", str(tmp_path / "net.pt"), "--classes", "4"]
    gallery.main([*options, "--images", str(tmp_path / "0.png"), "--fast", "--out", str(tmp_path)])
    found, pixels = read(tmp_path)
    check(found, pixels, 1, TRANSFORMERS)
    assert found["images"] == ["0.png"]


@pytest.mark.parametrize(
    "options", [["--network", "torchvision:resnet18"], ["--images", "a.jpg"], ["--network", "n", "--images", "a.jpg"]]
)
def test_options_that_belong_together(options, capsys):
    with pytest.raises(SystemExit):
        gallery.main(options)
    assert "--network" in capsys.readouterr().err
