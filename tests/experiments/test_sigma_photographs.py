import json
from dataclasses import replace

import pytest
from scripts import results, script, untrained

from robustsigma import Sigma, SigmaSample


def test_two_networks_join_one_file_and_batches_are_kept(tmp_path, monkeypatch):
    module = script("sigma_photographs")
    options = ["--fast", "--model", untrained(tmp_path), "--work", str(tmp_path), "--out", str(tmp_path)]
    module.main(options)
    found = results(tmp_path, "sigma_photographs")["networks"]
    assert list(found) == ["net"]
    means, settings = found["net"]["means"], found["net"]["settings"]
    assert {name: of["steps"]["n"] for name, of in means.items()} == {module.DEFAULT: 2, module.PRESET: 3}
    assert settings[module.PRESET] == repr(replace(Sigma.photographs(), paths=1, max_steps=2))
    assert found["net"]["preset minus default"]["ssim"]["n"] == 2
    (tmp_path / "sigma_photographs.json").write_text(json.dumps({"networks": {"other": found["net"]}}))
    monkeypatch.setattr(SigmaSample, "__call__", lambda *_, **__: pytest.fail("walked again"))
    module.main(options)
    assert list(results(tmp_path, "sigma_photographs")["networks"]) == ["other", "net"]
