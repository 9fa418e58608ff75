"""experiments/README.md lists every script, and the files of results that it names are there."""

import re

from scripts import EXPERIMENTS

INDEX = EXPERIMENTS / "README.md"
COMMANDS = sorted(
    [f"python experiments/{path.name}" for path in EXPERIMENTS.glob("*.py") if "__main__" in path.read_text("utf-8")]
    + [f"python -m experiments.{path.parent.name}" for path in EXPERIMENTS.glob("*/__main__.py")]
)


def test_the_index_names_every_script_and_no_other():
    named = re.findall(r"`(python (?:-m experiments\.\w+|experiments/\w+\.py))", INDEX.read_text("utf-8"))
    assert sorted(set(named)) == sorted(COMMANDS)


def test_every_file_of_results_is_there():
    named = re.findall(r"\bresults/[\w.]+\.(?:json|png|md)\b", INDEX.read_text("utf-8"))
    assert named
    missing = {name for name in named if not (EXPERIMENTS.parent / name).is_file()}
    assert not missing


def test_every_config_of_the_index_is_there():
    named = re.findall(r"\bconfigs/\w+/\w+\.yaml\b", INDEX.read_text("utf-8"))
    assert all((EXPERIMENTS.parent / name).is_file() for name in named)
