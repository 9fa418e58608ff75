import pytest
from scripts import results, script, untrained

from robustsigma import Sigma


@pytest.mark.third_party_rng  # weights and dropout
def test_the_fast_form_runs(tmp_path, capsys):
    pytest.importorskip("sklearn")
    module = script("sigma_settings")
    module.main(["--fast", "--datasets", "digits", "--max-steps", "3", "--work", str(tmp_path), "--out", str(tmp_path)])
    rows = results(tmp_path, "sigma_settings")["datasets"]["digits"]
    assert [row["name"] for row in rows] == [name for name, _ in module.SETTINGS]
    assert all(0 <= row["converged"]["mean"] <= 1 and row["steps"]["mean"] <= 3 for row in rows)
    assert "logit, the default" in capsys.readouterr().out


def test_of_any_network(tmp_path, capsys):
    options = ["--fast", "--model", untrained(tmp_path), "--images", "3", "--max-steps", "2", "--only", "4", "5"]
    script("sigma_settings").main([*options, "--work", str(tmp_path), "--out", str(tmp_path), "--name", "mine"])
    found = results(tmp_path, "mine")
    assert found["about"]["images"] == found["datasets"]["net"][0]["psnr"]["n"] == 3
    assert [row["name"] for row in found["datasets"]["net"]] == ["logit, the default", "logit, larger steps"]


def test_the_papers_settings_have_a_name():
    assert dict(script("sigma_settings").SETTINGS)["the paper's"] == Sigma.paper()
    told = Sigma.paper()
    assert (told.alpha, told.beta, told.epsilon, told.paths, told.objective) == (0.1, 0.5, 0.01, 7, "prob")
