import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("matrix_table", ROOT / "experiments" / "matrix_table.py")
matrix_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix_table)


@pytest.mark.parametrize("name", ["mnist5k", "baggage"])
def test_the_page_says_what_the_results_say(name):
    results = json.loads((ROOT / "results" / f"quickstart_{name}.json").read_text())
    page = (ROOT / "docs" / "results" / "retraining.md").read_text()
    assert matrix_table.table(results) in page
    assert matrix_table.caption(results) in page
