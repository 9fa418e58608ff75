"""The comparison of AutoAttack with the reference code, in its fast form."""

import pytest
from scripts import results, script


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
