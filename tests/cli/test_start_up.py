"""What the command line imports before it answers, and what it knows of Lightning's options without it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.cli import LightningCLI

from robustsigma import __version__
from robustsigma.cli import fit, lightning_cli
from robustsigma.cli.verbs import _VERBS
from robustsigma.lightning import LitClassifier, RobustDataModule

HEAVY = ("pytorch_lightning", "lightning_fabric", "matplotlib", "scipy", "torchmetrics", "torchvision", "pandas")
TYPOS = {verb: ["--cofig=x"] for verb in _VERBS} | {
    "evaluate": ["--training.epoch=3"],
    "benchmark": ["--methods.x=Sgma"],
    "fit": ["--trainer.max_epoch=3"],
    "test": ["--config=data: {batchsize: 3}"],
    "explain": ["x.png", "--model=y", "--method=Sgma"],
}


def loaded(command_lines: list[list[str]]) -> list[str]:
    """Return which heavy libraries a new interpreter has loaded after running command lines, which print to stderr."""
    code = f"""
import contextlib, sys
from robustsigma.cli import main
for arguments in {command_lines!r}:
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        main(arguments)
print(*(name for name in {HEAVY!r} if name in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.stdout.split()


def test_no_help_loads_a_heavy_library():
    assert loaded([[verb, "--help"] for verb in _VERBS]) == []


def test_no_misspelled_name_loads_a_heavy_library():
    assert loaded([["evalute"], *([verb, *arguments] for verb, arguments in TYPOS.items())]) == []


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "robustsigma", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"robustsigma {__version__}\n"


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_the_options_that_help_lists_are_those_of_lightning(verb, monkeypatch):
    def keep(self: LightningCLI, *_: object) -> None:
        raise KeyError({action.dest for action in self._subcommand_parsers[verb]._actions})

    monkeypatch.setattr(lightning_cli._CLI, "parse_arguments", keep)
    with pytest.raises(KeyError) as parsed:
        lightning_cli.run(verb, [])
    accepted = {name for name in parsed.value.args[0] if not name.endswith("help")}
    groups = {name: fit._options(*place, omit=omit) for name, (place, omit) in fit._GROUPS.items()}
    own = fit._options(*fit._TRAINER, function=verb, omit=fit._LOADERS)
    shown = {f"{group}.{name}" for group, options in groups.items() for name in options}
    # `data.seed` follows `seed_everything`; `allow` is taken from the command line before it is parsed.
    assert accepted - {"data.seed"} == shown | {*groups, *own, *fit._COMMON} - {"allow"}


def test_no_name_in_our_files_of_fit_is_refused(monkeypatch):
    parsed: list[list[str]] = []
    monkeypatch.setattr(lightning_cli, "run", lambda verb, arguments: parsed.append(arguments))
    files = sorted((Path(__file__).parents[2] / "configs" / "fit").rglob("*.yaml"))
    for file in files:
        fit.run("fit", ["--config", str(file), "--data.dataset.size=32", "--trainer.callbacks+=Timer", "--allow=os"])
    assert len(parsed) == len(files) > 4


@pytest.mark.parametrize("kind", [LitClassifier, RobustDataModule, pl.Trainer])
def test_the_arguments_read_from_source_are_those_of_the_class(kind):
    place = next(place for place, _ in fit._GROUPS.values() if place[2] == kind.__name__)
    found, signature = fit._options(*place), inspect.signature(kind)
    assert list(found) == list(signature.parameters)
    required = [name for name, each in signature.parameters.items() if each.default is inspect.Parameter.empty]
    assert [name for name, option in found.items() if option.default is None] == required
    assert all(option.description for option in found.values())
