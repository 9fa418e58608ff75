"""The comparison of AutoAttack with the reference code, in its fast form."""

import json

import pytest
from scripts import EXPERIMENTS, results, script


@pytest.mark.reference
@pytest.mark.third_party_rng  # training and the reference draw from the global generators
def test_both_attacks_are_measured(tmp_path):
    pytest.importorskip("pyautoattack")
    pytest.importorskip("mlxtend")
    main = script("autoattack").main
    main(["--fast", "--only", "plain", "--radius", "1", "--work", str(tmp_path), "--out", str(tmp_path)])
    ((row,),) = results(tmp_path, "autoattack")["networks"].values()
    assert row["eps"] == 0.15
    for who in ("own", "reference"):
        assert 0 <= row[who]["accuracy"]["mean"] <= 1
        assert row[who]["forwards"] > 20
    assert row["own"]["largest_distance"] <= 0.15 * (1 + 1e-5)
    assert row["own"]["after"]["square"] == row["own"]["accuracy"]["mean"]
    # Of 20 images and a few steps, the two may differ by one or two.
    assert abs(row["points_above"]) <= 10


def test_the_page_has_the_measured_table():
    found = json.loads((EXPERIMENTS.parent / "results" / "autoattack.json").read_text(encoding="utf-8"))
    rows = [row for rows in found["networks"].values() for row in rows]
    assert script("autoattack").shown(found) in (EXPERIMENTS.parent / "docs" / "results" / "autoattack.md").read_text(
        encoding="utf-8"
    )
    ahead = [row["own"]["accuracy"]["mean"] - row["reference"]["accuracy"]["mean"] for row in rows]
    assert (max(ahead), min(ahead)) == (pytest.approx(0.004), pytest.approx(-0.006)), "what the page says"
    assert sum(abs(each) < 1e-9 for each in ahead) == 9
    assert all(row["own"]["seconds"] < row["reference"]["seconds"] for row in rows)
