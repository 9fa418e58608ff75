"""Files of others cannot run code: class paths and networks are refused before anything of them is imported."""

from __future__ import annotations

import re
import sys
import time

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from robustsigma.cli import main
from robustsigma.cli.evaluate import PRESETS
from robustsigma.cli.parsing import import_allowlist, split_allow
from robustsigma.engine.attributors import Attributor, IntegratedGradients
from robustsigma.models import Architecture, ModelCard, save_model

CLASS = """
open({marker!r}, "w").close()
from robustsigma.engine.attributors import IntegratedGradients
from robustsigma.engine.perturbations import Identity
class Method(IntegratedGradients): pass
class Harmless(Identity): pass
class Net(__import__("torch").nn.Flatten): pass
"""
PERTURBATION, METHOD = "{name}.Harmless", "{name}.Method"


@pytest.fixture
def stranger(tmp_path, monkeypatch, request):
    """Return the name of a module that leaves a marker when it is imported, and the marker."""
    name, marker = f"stranger_{abs(hash(request.node.name))}", tmp_path / "marker"
    (tmp_path / f"{name}.py").write_text(CLASS.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    yield name, marker
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path, architecture = tmp_path_factory.mktemp("model") / "m.safetensors", Architecture("small_cnn", {"width": 2})
    with torch.random.fork_rng(devices=[]):
        return save_model(path, architecture.build(3, 2), ModelCard(architecture, ("a", "b"), (3, 16, 16)))


# Each a verb, the YAML that a stranger hands over, and whether it is a network that is named.
FILES = {
    "method": ("explain", "method: {{class_path: " + METHOD + "}}"),
    "method by text": ("explain", "method: " + METHOD),
    "any argument": ("explain", "arguments: {{x: {{class_path: " + METHOD + "}}}}\nmodel: " + METHOD),
    "model": ("explain", "model: {name}.Net\nmean: [0.5]\nstd: [0.5]"),
    "perturbation": ("augment", "perturbation: {{class_path: " + PERTURBATION + "}}"),
    "inner": (
        "augment",
        "perturbation: {{class_path: Mixture, init_args: {{parts: "
        "[{{share: 1, perturbation: {{class_path: " + PERTURBATION + "}}}}]}}}}",
    ),
    "attributor within": (
        "augment",
        "perturbation: {{class_path: robustsigma.PathEnd, init_args: {{attributor: {{class_path: " + METHOD + "}}}}}}",
    ),
    "dataset": ("augment", "images: []\ndataset: {{class_path: " + METHOD + "}}"),
    "methods": ("benchmark", "methods: {{x: {{class_path: " + METHOD + "}}}}"),
    "metrics": ("benchmark", "metrics: [{{class_path: " + METHOD + "}}]"),
    "architecture": ("benchmark", "architecture: {{name: {name}.Net}}"),
    "models": ("benchmark", "models: {{x: {name}.Net}}"),
    "described models": ("benchmark", "models: {{x: {{name: {name}.Net, mean: [0.5], std: [0.5]}}}}"),
    "own allowance": ("explain", "allow: [{name}]\nmethod: {{class_path: " + METHOD + "}}"),
    "own allowance of a benchmark": ("benchmark", "allow: [{name}]\nmethods: {{x: {{class_path: " + METHOD + "}}}}"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("inline", [False, True])
def test_a_file_names_code_and_nothing_of_it_runs(file, inline, stranger, model, tmp_path, capsys):
    name, marker = stranger
    verb, text = FILES[file]
    path = tmp_path / "given.yaml"
    path.write_text(text.format(name=name))
    arguments = [verb, f"--config={path.read_text() if inline else path}", f"--out={tmp_path}/out"]
    if verb != "benchmark":
        Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
        arguments += [] if file == "dataset" else [str(tmp_path / "photo.png")]
        arguments += [] if "model:" in text else [f"--model={model}"]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert not marker.exists(), told
    assert name not in sys.modules
    assert "--allow " in told or "allow: expected" in told or "arguments" in told, told
    assert len(told.splitlines()) == 1


FUNCTIONS = ("os.system", "subprocess.Popen", "builtins.exec", "torch.load", "torch.hub.load", "jsonargparse.CLI")


@pytest.mark.parametrize("path", [*FUNCTIONS, "robustsigma.runs.files.os.system", "robustsigma.cli.verbs.main"])
def test_functions_of_others_are_no_classes(path, model, tmp_path, capsys):
    assert main(["explain", str(tmp_path), f"--model={model}", f"--method={path}"]) == 2
    assert main(["explain", str(tmp_path), f"--model={path}", "--mean=[0]", "--std=[1]"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("allow", ["{name}", "{name}.Method"])
def test_what_the_command_line_allows_is_taken(allow, stranger, model, tmp_path, capsys):
    name, marker = stranger
    (tmp_path / "given.yaml").write_text(f"method: {{class_path: {name}.Method, init_args: {{steps: 1}}}}")
    arguments = ["explain", str(tmp_path / "no.png"), f"--model={model}", f"--config={tmp_path}/given.yaml"]
    assert main([*arguments, "--allow=another", "--allow", allow.format(name=name)]) == 2
    assert marker.exists()
    assert "images: expected existing files" in capsys.readouterr().err, "it came as far as the images"


@pytest.mark.slow
def test_settings_name_what_the_command_line_allows(stranger):
    name, marker = stranger
    given = [f"--conditions.mine={name}.Harmless"]
    for allow in ([], ["--allow", "another"]):
        with pytest.raises(
            ValueError, match=rf"^class_path: expected a class of .*; add --allow {name}.Harmless if you"
        ):
            PRESETS.parse("evaluate", "", "runs", [*given, *allow])
        with pytest.raises(
            ValueError, match=rf"^architecture.name: expected .*; add --allow {name}.Net if you trust it"
        ):
            PRESETS.parse("evaluate", "", "runs", [*allow, f"--architecture.name={name}.Net"])
    assert not marker.exists()
    asked = PRESETS.parse("evaluate", "", "runs", [*given, "--allow", name])
    assert type(asked.settings.conditions["mine"]).__name__ == "Harmless"
    assert asked.command.endswith(f"--allow {name}"), "the report's command line is whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument",
    [
        "--model.net={name}.Net",
        "--data.train_perturbation={name}.Harmless",
        "--model.net={{class_path: robustsigma.models.network, "
        "init_args: {{name: {name}.Net, channels: 3, classes: 5}}}}",
        "--trainer.callbacks=[{{class_path: {name}.Harmless}}]",
        "--model.optimizer=torch.hub.load",
    ],
)
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
@pytest.mark.third_party_rng  # Lightning seeds everything
def test_a_training_imports_by_the_same_policy(verb, argument, stranger, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, marker = stranger
    net = ["--model.net=robustsigma.models.SmallCNN", "--model.net.channels=3", "--model.net.classes=5"]
    arguments = ["--data.dataset=Baggage", *([] if "model.net" in argument else net), argument.format(name=name)]
    assert main([verb, *arguments]) == 2
    assert not marker.exists()
    assert "; add --allow " in capsys.readouterr().err
    if verb == "fit" and "torch.hub" not in argument:
        assert main([verb, *arguments, "--allow", name, "--trainer.accelerator=cpu", "--trainer.devices=0"]) == 2
        assert marker.exists(), "it was allowed"


def test_the_restriction_ends_with_its_block(stranger):
    name, _ = stranger
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Attributor)
    with pytest.raises(ValueError, match="class_path"), import_allowlist(()):
        parser.parse_args([f"--method={name}.Method"])
    assert parser.parse_args([f"--method={name}.Method"]).method.class_path.endswith("Method")
    with import_allowlist(()):
        found = parser.instantiate(parser.parse_args(["--method=IntegratedGradients"]))
    assert found.method == IntegratedGradients()


def test_allowances_are_taken_out_of_a_command_line():
    given = ["a", "--allow", "x.y", "--method=b", "--allow=z", "--", "--c"]
    assert split_allow(given)[0] == ["x.y", "z"]
    assert split_allow(["a", "--allowance", "b"]) == ([], ["a", "--allowance", "b"])
    for wrong in ("", "a b", "*", "a..b", "jsonargparse", "jsonargparse._common"):
        with pytest.raises(ValueError, match=r"^allow: expected the dotted path"):
            split_allow([f"--allow={wrong}"])
    with pytest.raises(ValueError, match=r"^allow: expected a dotted path"):
        split_allow(["--allow"])


def _laughs(levels=40):
    lines = ["k0: &k0 [1, 1]", *(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]" for i in range(1, levels))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (_laughs(), "more than 100000 values"),
        ("images: " + "[" * 20_000, "nest"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: 1\n\x00b: 2", "not allowed"),
        ("seed: 1\nseed: 2", "the name 'seed' twice in one mapping, in line 2"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("seed: 0x" + "f" * 10_000, "seed: expected an int of 64 bits|images: expected a folder"),
        ("seed: " + "9" * 10_000, "limit"),
        ("[1, 2", "expected"),
        ("? {a: 1}\n: 2", "unhashable"),
    ],
    ids=["laughs", "deep", "within itself", "NUL", "twice", "tag", "huge hex", "huge", "cut", "unhashable"],
)  # fmt: skip
def test_hostile_yaml_is_told_soon(text, told, model, tmp_path, capsys):
    (tmp_path / "given.yaml").write_text(text)
    start = time.perf_counter()
    assert main(["explain", str(tmp_path), f"--model={model}", f"--config={tmp_path}/given.yaml"]) == 2
    assert time.perf_counter() - start < 5
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line), line


def test_names_of_files_cannot_steer_the_terminal(model, tmp_path, capsys):
    odd = tmp_path / "a\x1b[2J\udcff.png"
    assert main(["explain", str(odd), f"--model={model}"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    Image.new("RGB", (16, 16)).save(odd)
    arguments = [str(odd), f"--model={model}", f"--out={tmp_path}/out"]
    assert main(["explain", *arguments, "--method=Gradient"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main(["augment", *arguments[:2], "--label=0", f"--out={tmp_path}/more", "--perturbation=GaussianNoise"]) == 0
    written = (tmp_path / "more" / "manifest.csv").read_bytes()
    assert b"\x1b" not in written
    assert "a\ufffd[2J\ufffd.png" in written.decode("utf-8")
