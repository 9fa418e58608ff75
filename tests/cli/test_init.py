"""`robustsigma init` finds out what a user's folder and model are, and writes settings that can be run."""

import csv
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from robustsigma import Sigma, SigmaSample
from robustsigma.cli import main
from robustsigma.cli.evaluate import PRESETS
from robustsigma.models import Architecture, CifarResNet, ModelCard, save_model
from robustsigma.models.identification import identify


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def draw(path, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, shape, np.uint8)).save(path)


def weights_of(name, **options):
    with torch.random.fork_rng():
        return torchvision.models.get_model(name, **options).state_dict()


def folder(root, splits=("",), classes=("ant", "bee"), count=10, **drawn):
    for split in splits:
        for name in classes:
            for place in range(count):
                draw(root / split / name / f"{place}.png", **drawn)


def settings(*arguments):
    assert main(["init", *map(str, arguments)]) == 0
    return PRESETS.parse("evaluate", "", "out", ["--config", "robustsigma.yaml"]).settings


def test_a_folder_alone_gives_a_training(tmp_path):
    folder(tmp_path / "photos")
    found = settings("photos")
    assert found.architecture.name == "small_cnn"
    assert found.training.epochs
    assert found.dataset.classes == ("ant", "bee")
    assert set(found.retraining.on_the_fly) == {"fgsm", "sigma"}


def test_small_gray_images_keep_their_size_and_channel(tmp_path):
    folder(tmp_path / "digits", splits=("train", "test"), size=(28, 28), mode="L")
    found = settings("digits")
    assert found.dataset.shape == (1, 28, 28)
    assert found.conditions["fgsm"].eps == 0.1


@pytest.mark.parametrize("columns", [("file", "label"), ("Filename", "Category")])
@pytest.mark.parametrize("where", ["", pytest.param("images/", marks=pytest.mark.slow)])
def test_a_table_is_recognized_by_its_columns(tmp_path, columns, where):
    rows = [
        (f"{name}{place}.png", name, split)
        for name in ("ant", "bee")
        for split in ("train", "test")
        for place in range(4)
    ]
    for file, _, _ in rows:
        draw(tmp_path / "data" / where / file)
    with (tmp_path / "data" / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([(*columns, "split"), *rows])
    found = settings("data")
    assert found.dataset.splits == ("train", "val", "test")
    assert len(found.dataset.split("test")) == 8


def test_columns_of_other_names_are_stated(tmp_path, capsys):
    rows = [("id", "diagnosis"), *((f"{place}.png", "ab"[place % 2]) for place in range(12))]
    for file, _ in rows[1:]:
        draw(tmp_path / "data" / "images" / file)
    table = tmp_path / "data" / "list.tsv"
    table.write_text("\n".join(map("\t".join, rows)))
    for arguments, got in (
        ([], "has the columns id, diagnosis; nor is it a folder of classes"),
        (["--file_column", "ID"], "has the columns id, diagnosis"),
        (["--file_column", "diagnosis", "--label_column", "id"], "has 'a' in the column diagnosis, which is no file"),
    ):
        assert main(["init", "data", *arguments]) == 2
        assert f"list.tsv, which {got}" in capsys.readouterr().err
    found = settings("data", "--file_column", "id", "--label_column", "diagnosis").dataset
    assert (found.classes, sorted(found.split("train").labels)) == (("a", "b"), [0] * 4 + [1] * 5)
    (tmp_path / "robustsigma.yaml").unlink()
    table.write_bytes(b"\xff")
    assert main(["init", "data"]) == 2
    assert "which has no UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "prefix", ["model.", *(pytest.param(each, marks=pytest.mark.slow) for each in ("", "net.module."))]
)
def test_the_network_of_a_checkpoint_is_found_and_used_as_it_is(tmp_path, prefix):
    folder(tmp_path / "photos")
    state = weights_of("alexnet", num_classes=2)  # the first one that is tried
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, "last.ckpt")
    found = settings("photos", "--model", "last.ckpt")
    assert (found.architecture.name, found.training.epochs) == ("torchvision:alexnet", 0)
    assert found.dataset.shape == (3, 224, 224)
    assert found.dataset.splits == ("test",)  # nothing says which images it was trained on
    assert found.retraining.on_the_fly == {}


@pytest.mark.slow
def test_a_network_of_other_classes_is_trained_further(tmp_path):
    folder(tmp_path / "photos")
    torch.save(weights_of("alexnet", num_classes=7), "seven.pt")
    assert settings("photos", "--model", "seven.pt").training.epochs
    assert "7 logits" in (tmp_path / "robustsigma.yaml").read_text()


@pytest.mark.slow
def test_photographs_get_the_walk_for_photographs(tmp_path):
    folder(tmp_path / "photos", size=(160, 140))
    torch.save(weights_of("alexnet", num_classes=2), "two.pt")
    found = settings("photos", "--model", "two.pt")
    assert found.dataset.shape[1] > 128
    assert found.conditions["sigma"] == SigmaSample(replace(Sigma.photographs(), paths=1))
    (tmp_path / "robustsigma.yaml").unlink()
    folder(tmp_path / "small", size=(32, 32))
    assert settings("small").conditions["sigma"] == SigmaSample()


def test_a_network_by_name_with_its_weights(tmp_path):
    folder(tmp_path / "photos", size=(8, 8))
    with torch.random.fork_rng():
        torch.save(CifarResNet(classes=2).state_dict(), "own.pt")
    found = settings("photos", "--model", "robustsigma.models.CifarResNet", "--weights", "own.pt")
    assert (found.architecture.weights, found.dataset.shape) == ("own.pt", (3, 8, 8))
    assert found.mean == (0.485, 0.456, 0.406)


def test_the_order_of_numbered_folders_is_to_be_checked(tmp_path):
    folder(tmp_path / "digits", classes=("2", "10"), size=(8, 8))
    with pytest.warns(UserWarning, match="'10' before '2'"):
        settings("digits")
    assert "# CHECK: classes are in alphabetical order, '10'" in (tmp_path / "robustsigma.yaml").read_text()
    (tmp_path / "robustsigma.yaml").unlink()
    with torch.random.fork_rng():
        net = Architecture().build(3, 2)
    save_model("own.safetensors", net, ModelCard(net.architecture, ("2", "10"), (3, 8, 8)))
    settings("digits", "--model", "own.safetensors")  # whose order of classes is taken


def test_unreadable_images_are_left_out(tmp_path, capsys):
    folder(tmp_path / "photos")
    for path in sorted((tmp_path / "photos" / "ant").iterdir())[:9]:
        path.write_bytes(b"no image")
    found = settings("photos")
    assert found.dataset.skip_broken
    text = (tmp_path / "robustsigma.yaml").read_text()
    assert "such as photos/ant/0.png (cannot identify image file" in text
    assert "#   robustsigma doctor --data photos\n" in text
    broken = replace(found.dataset, skip_broken=False).split("test")
    with pytest.raises(ValueError, match="robustsigma doctor --data FOLDER lists all such files, and skip_broken=True"):
        list(broken)
    folder(tmp_path / "broken")
    for path in (tmp_path / "broken").glob("*/*.png"):
        path.write_bytes(b"no image")
    assert main(["init", "broken", "--out", "new.yaml"]) == 2
    assert "robustsigma doctor --data FOLDER" in " ".join(capsys.readouterr().err.split())


class Own(torch.nn.Linear):
    def __init__(self, outputs=2):
        super().__init__(192, outputs)

    def forward(self, images):
        return super().forward(images.flatten(1))


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Own=Own, three=lambda: Own(3)))


@pytest.mark.usefixtures("own")
def test_a_constructor_need_not_take_the_number_of_classes(tmp_path):
    folder(tmp_path / "photos", size=(8, 8))
    with torch.random.fork_rng():
        torch.save(Own().state_dict(), "own.pt")
    assert main(["init", "photos", "--model", "mine.Own", "--weights", "own.pt", "--allow", "mine"]) == 0
    config = ["--config", "robustsigma.yaml", "--allow", "mine"]
    found = PRESETS.parse("evaluate", "", "out", config).settings.architecture
    assert found.fingerprint((3, 8, 8), 2, trained=True)["logits"]  # as `evaluate` calls it


@pytest.mark.usefixtures("own")
def test_a_network_of_your_own_has_a_logit_for_each_class():
    for architecture in (Architecture("mine.three"), Architecture("mine.Own", {"outputs": 3})):
        with pytest.raises(ValueError, match=r"^architecture\.name: expected a network of 2 logits.*got 3 of mine"):
            architecture.fingerprint((3, 8, 8), 2, trained=True)
    with pytest.raises(ValueError, match=r"^dataset: expected an image size that Own takes, got \(1, 8, 8\)"):
        Architecture("mine.Own").check((1, 8, 8), 2, trained=True)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("model", "outputs", "words"),
    [("mine.three", 3, "architecture.name: expected a network of 2 logits"), ("mine.Own", 3, "weights: expected")],
)
def test_a_network_that_does_not_fit_is_not_written(tmp_path, capsys, model, outputs, words):
    folder(tmp_path / "photos", size=(8, 8))
    with torch.random.fork_rng():
        torch.save(Own(outputs).state_dict(), "own.pt")
    assert main(["init", "photos", "--model", model, "--weights", "own.pt", "--allow", "mine"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "robustsigma.yaml").exists()


@pytest.mark.usefixtures("own")
def test_a_size_that_the_network_does_not_take_is_named(tmp_path):
    folder(tmp_path / "photos", size=(9, 9))
    with pytest.warns(UserWarning, match=r"correct the size or channels of the dataset in robustsigma\.yaml"):
        assert main(["init", "photos", "--model", "mine.Own", "--allow", "mine"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "data: expected an existing folder"),
        (["empty"], "data: expected a folder with images"),
        (["notes.csv"], "a column of files"),
        (["photos", "--weights", "own.pt"], "--model NAME"),
        pytest.param(["photos", "--model", "own.pt"], "--model NAME --weights FILE", marks=pytest.mark.slow),
        (["photos", "--model", "torchvision:resnet81"], "did you mean 'resnet18'"),
        (["photos", "--model", "mine.Net"], "--allow"),
        (["photos", "--out", "notes.csv"], "the name of a new file"),
        (["photos/test"], "has no training images"),
    ],
)
def test_errors_name_the_argument_and_what_to_do(tmp_path, capsys, arguments, words):
    folder(tmp_path / "photos", splits=("train", "test"), count=2)
    (tmp_path / "photos" / "test" / "test").mkdir()
    (tmp_path / "photos" / "test" / "ant").rename(tmp_path / "photos" / "test" / "test" / "ant")
    (tmp_path / "photos" / "test" / "bee").rename(tmp_path / "photos" / "test" / "test" / "bee")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    torch.save({"weight": torch.zeros(1)}, "own.pt")
    assert main(["init", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "robustsigma.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 1000])
@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v3_small", "regnet_x_400mf", "vit_b_32"])
def test_every_kind_of_network_is_identified(name, classes):
    options = {"init_weights": False} if name == "googlenet" else {}
    state = weights_of(name, num_classes=classes, **options)
    assert identify({key: value for key, value in state.items() if not key.startswith("aux")}) == (
        f"torchvision:{name}",
        classes,
    )
