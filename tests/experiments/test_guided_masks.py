"""The experiment on where training images are perturbed, in its fast form, and its statistics."""

import numpy as np
import pytest
from scripts import results, script


@pytest.mark.slow
@pytest.mark.third_party_rng  # Lightning draws from the global generators
def test_it_measures_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip("albumentations")
    guided = script("guided_masks")
    arguments = ["--fast", "--work", str(tmp_path), "--out", str(tmp_path)]
    guided.main([*arguments, "--only", "1"])
    guided.main(arguments)
    found = results(tmp_path, "guided_masks")
    assert list(found["accuracy"]) == list(guided.REGIMES)
    assert {own["other clutter"]["n"] for own in found["accuracy"].values()} == {10}
    monkeypatch.setattr(guided, "fitted", lambda *_: pytest.fail("trained again"))
    guided.main(arguments)
    assert results(tmp_path, "guided_masks")["accuracy"] == found["accuracy"]


def test_differences_are_guided_minus_random_and_holm_counts_the_family():
    guided = script("guided_masks")
    bad, good = [0] * 20 + [1] * 20, [1] * 40
    rows = {name: good if ", high" in name else bad for name in guided.REGIMES}
    cells = {
        name: [{"correct": dict.fromkeys(guided.CONDITIONS, row), "cpu_seconds": 1.0}] * 2 for name, row in rows.items()
    }
    found = guided.summary(cells)
    family = found["guided minus random, all conditions"]
    assert len(family) == 2 * sum(map(len, guided.MASKED.values()))
    assert len(found["guided minus random, each condition"]) == len(family) * len(guided.CONDITIONS)
    for name, gain in family.items():
        assert gain["mean"] == (0.5 if ", high" in name else 0)
        assert gain["significant"] == (", high" in name)
    high = [gain for name, gain in family.items() if ", high" in name]
    assert np.allclose([gain["holm"] for gain in high], [min(1, len(family) * gain["p"]) for gain in high])
    assert "clean" not in found["minus clean, all conditions"]
