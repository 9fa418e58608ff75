"""experiments/scale.py: the small form, and what it counts."""

import pytest
from scripts import results, script


@pytest.mark.slow
def test_the_fast_form_measures_every_size_and_reports_what_it_left_out(tmp_path, capsys):
    scale = script("scale")
    scale.main(["--fast", "--sizes", "8", "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    few, many = results(tmp_path, "scale")["rows"]
    for row in (few, many):
        assert row["cells"] == 3 * 13
        assert 0 < row["seconds"]["passes"] < row["seconds"]["whole"]
        # Every network and condition sees an image that was read once; a fixed number is read again.
        assert row["reads"]["mean"] * row["images"] < 8 * row["images"]
        assert row["memory_mb"]["above_base"] >= row["memory_mb"]["above_base_at_a_quarter"]
    for row in results(tmp_path, "scale")["utilization"]["rows"]:
        assert row["blocks"] == 3
        assert sum(row["seconds"]["ranks"]) == pytest.approx(row["seconds"]["blocks"])
        assert row["utilization"] * 8 * row["seconds"]["longest_block"] == pytest.approx(row["seconds"]["blocks"])
    (tmp_path / "work" / "8_160.json").unlink()
    scale.main(["--fast", "--sizes", "8", "--minutes", "0", "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    assert "not run" in capsys.readouterr().out
