"""The experiment on SIGMA on top of adversarial training, in its fast form, and the page that shows its numbers."""

import json

import pytest
from scripts import EXPERIMENTS, results, script

ROOT = EXPERIMENTS.parent


@pytest.mark.slow
@pytest.mark.third_party_rng  # Lightning draws from the global generators
def test_it_measures_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    pytest.importorskip("albumentations")
    on_top = script("on_top")
    arguments = ["--fast", "--work", str(tmp_path), "--out", str(tmp_path)]
    on_top.main(arguments)
    found = results(tmp_path, "on_top")
    for recipe in on_top.RECIPES:
        assert found["accuracy"][recipe]["clean"]["n"] == 20
        assert list(found["differences"][recipe]) == ["clean", on_top.ATTACK, *on_top.CORRUPTIONS]
        for condition, gain in found["differences"][recipe].items():
            with_sigma, without = (found["accuracy"][name][condition]["mean"] for name in (f"{recipe} + SIGMA", recipe))
            assert gain["mean"] == pytest.approx(with_sigma - without)
    monkeypatch.setattr(on_top, "trained", lambda *_: pytest.fail("trained again"))
    on_top.main(arguments)
    assert results(tmp_path, "on_top")["differences"] == found["differences"]


def test_the_page_says_what_the_results_say():
    on_top = script("on_top")
    found = json.loads((ROOT / "results" / "on_top.json").read_text())
    page = (ROOT / "docs" / "results" / "retraining.md").read_text()
    assert on_top.shown(found) in page
    assert on_top.caption(found) in page


def test_holm_counts_every_difference_and_signs_are_sigma_minus_recipe():
    on_top = script("on_top")

    def cell(right):
        return {"right": {"clean": right}, "training_seconds": 1.0, "sigma_samples": {}}

    good, bad = [1] * 40, [0] * 20 + [1] * 20
    cells = {"PGD": [cell(bad)] * 2, "PGD + SIGMA": [cell(good)] * 2, "TRADES": [cell(good)] * 2}
    cells["TRADES + SIGMA"] = [cell(good)] * 2
    found = on_top.summary(cells)["differences"]
    gain, none = found["PGD"]["clean"], found["TRADES"]["clean"]
    assert gain["mean"] == 0.5
    assert gain["significant"]
    assert gain["holm"] == pytest.approx(2 * gain["p"])
    assert not none["significant"]
