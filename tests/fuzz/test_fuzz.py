"""Any input gives a correct result, or an error that says what is wrong with it.

`pytest -m slow tests/fuzz` tries 1,000 random inputs of each kind; `--hypothesis-seed N` draws others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine" / "attributors"))  # for settings.py and vit.py
from targets import TARGETS

EXAMPLES = {"constructors": 150, "calls": 30, "command lines and YAML": 20, "image files": 60, "tables": 60,
            "names of classes": 60, "files of weights": 60}  # fmt: skip
# Hypothesis seeds the global generators and restores them; `fit` seeds everything.
pytestmark = pytest.mark.third_party_rng


def _check(name, examples, **kwargs):
    strategy, check = TARGETS[name]
    fixed = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    settings(max_examples=examples, **fixed, **kwargs)(given(strategy)(check))()


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_accepted_or_refused(name):
    _check(name, EXAMPLES[name], derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs_are_accepted_or_refused(name):
    _check(name, 1000)
