"""A folder is bound to the source of the code that a command line allows."""

import hashlib

import pytest
import torch

from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.models import Architecture, ModelCard, save_model
from robustsigma.runs.fingerprint import code_of

TINY = {"dataset.size": 16, "dataset.train": 24, "dataset.val": 12, "dataset.test": 8, "training.epochs": 1}


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """Return the name of a package of somebody, and its folder."""
    name = f"mine_{abs(hash(request.node.name))}"
    for place in ("__init__.py", "nets.py", "deep/__init__.py", "deep/more.py"):
        (tmp_path / name / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / place).write_text(f"class A: place = {place!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name, tmp_path / name


def test_a_module_counts_by_its_file_and_a_package_by_all_of_them(mine):
    name, folder = mine
    paths = (name, f"{name}.nets", f"{name}.nets.A", f"{name}.deep")
    before = code_of(paths)["code"]
    assert set(before) == {*paths}
    assert before[f"{name}.nets"] == before[f"{name}.nets.A"]
    assert before[f"{name}.nets"] == hashlib.sha256((folder / "nets.py").read_bytes()).hexdigest()
    assert code_of(tuple(reversed(paths)))["code"] == before
    (folder / "deep" / "more.py").write_text("class A: place = 'elsewhere'\n")
    after = code_of(paths)["code"]
    assert {path for path in paths if after[path] != before[path]} == {name, f"{name}.deep"}


@pytest.mark.parametrize("name", ["sys", "builtins.exec", "nowhere", "nowhere.at.all"])
def test_what_has_no_file_is_left_out(name):
    assert code_of([name]) == code_of([]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["evaluate", "sweep"])
def test_a_changed_file_is_refused(verb, mine, tmp_path, monkeypatch, capsys):
    name, folder = mine
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    monkeypatch.setattr(RobustnessRun, "_train", _interrupt)
    arguments = [verb, "--allow", name, "--out", str(tmp_path / "out"), *(f"--{k}={v}" for k, v in TINY.items())]
    if verb == "sweep":
        arguments.append("--sweep.stds=[0.1, 0.2]")
    for _ in range(2):
        assert main(arguments) == 130
    (folder / "nets.py").write_text("class A: place = 'elsewhere'\n")
    capsys.readouterr()
    assert main(arguments) == 2
    assert f"code.{name} = " in capsys.readouterr().err
    assert main(arguments[:1] + arguments[3:]) == 2, "without --allow it is not known which code it was"


@pytest.mark.slow
def test_samples_of_changed_code_are_refused(mine, tmp_path, monkeypatch, capsys):
    name, folder = mine
    monkeypatch.setattr("sys.argv", ["robustsigma"])
    model = tmp_path / "m.safetensors"
    architecture = Architecture("small_cnn", {"width": 2})
    with torch.random.fork_rng(devices=[]):
        save_model(model, architecture.build(3, 5), ModelCard(architecture, Baggage().classes, (3, 16, 16)))
    arguments = ["augment", "--allow", name, "--dataset=Baggage", "--dataset.size=16", "--dataset.train=8", "--count=2"]
    arguments += [f"--model={model}", "--perturbation=GaussianNoise", f"--out={tmp_path / 'out'}"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    (folder / "nets.py").write_text("class A: place = 'elsewhere'\n")
    assert main(arguments) == 2
    assert f"code.{name} = " in capsys.readouterr().err


def _interrupt(*_):
    raise KeyboardInterrupt
