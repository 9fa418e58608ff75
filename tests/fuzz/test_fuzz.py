"""Whatever comes: a right result or an error that says what is wrong. `experiments/fuzz.py` tries much more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine" / "attributors"))  # for settings.py and vit.py
from targets import TARGETS

EXAMPLES = {"constructors": 150, "calls": 30, "command lines and YAML": 20, "image files": 60, "tables": 60,
            "names of classes": 60, "files of weights": 60}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.third_party_rng  # hypothesis seeds the global generators and puts them back; `fit` seeds everything
def test_whatever_comes_is_taken_or_refused(name):
    strategy, check = TARGETS[name]
    found = settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )(given(strategy)(check))
    found()
