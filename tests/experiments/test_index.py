"""experiments/README.md lists every script, and the files of results that it names are there."""

import re

import pytest
from scripts import EXPERIMENTS

INDEX = EXPERIMENTS / "README.md"
COMMANDS = sorted(
    [f"python experiments/{path.name}" for path in EXPERIMENTS.glob("*.py") if "__main__" in path.read_text("utf-8")]
    + [f"python -m experiments.{path.parent.name}" for path in EXPERIMENTS.glob("*/__main__.py")]
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_script_is_in_the_index(command):
    assert re.search(rf"`{re.escape(command)}\b", INDEX.read_text("utf-8"))


def test_every_script_of_the_index_is_there():
    named = re.findall(r"`(python (?:-m experiments\.\w+|experiments/\w+\.py))", INDEX.read_text("utf-8"))
    assert named
    assert set(named) <= set(COMMANDS)


def test_every_file_of_results_is_there():
    named = re.findall(r"\bresults/[\w.]+\.(?:json|png|md)\b", INDEX.read_text("utf-8"))
    assert named
    missing = {name for name in named if not (EXPERIMENTS.parent / name).is_file()}
    assert not missing


def test_every_config_of_the_index_is_there():
    named = re.findall(r"\bconfigs/\w+/\w+\.yaml\b", INDEX.read_text("utf-8"))
    assert all((EXPERIMENTS.parent / name).is_file() for name in named)
