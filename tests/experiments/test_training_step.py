import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "experiments" / "training_step.py"


@pytest.mark.third_party_rng  # weights
def test_the_fast_form_runs(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("training_step", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--fast", "--datasets", "baggage", "--batch-size", "40", "--steps", "2", "--epochs", "3",
                 "--warm-up", "1", "--pretraining", "2", "--max-steps", "4",
                 "--out", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "training_step.json").read_text())["datasets"]["baggage"]
    assert found["timed_steps"] == 2 * 2
    rows = found["steps"]
    assert rows["plain"]["ratio"] == 1
    assert all(row["milliseconds"] > 0 for row in rows.values())
    assert rows["mixed"]["hit_rate"] is rows["plain"]["steps_of_a_walk"] is None
    for kind in ("mixed, cached", "sigma, cached"):
        assert 0 <= rows[kind]["hit_rate"] + rows[kind]["expired"] + rows[kind]["stale"] <= 1
    assert rows["sigma, cached"]["hit_rate"] > 0
    assert rows["sigma"]["steps_of_a_walk"] > 1
    assert "sigma, cached" in capsys.readouterr().out
