import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "experiments" / "sigma_settings.py"


@pytest.mark.third_party_rng  # weights and dropout
def test_the_fast_form_runs(tmp_path, capsys):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("sigma_settings", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--fast", "--datasets", "digits", "--max-steps", "3", "--work", str(tmp_path), "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "sigma_settings.json").read_text())["datasets"]["digits"]
    assert [row["name"] for row in rows] == [name for name, _ in module.SETTINGS]
    assert all(0 <= row["converged"]["mean"] <= 1 and row["steps"]["mean"] <= 3 for row in rows)
    assert "logit, the default" in capsys.readouterr().out
