import json
import re
from pathlib import Path

import pytest

from robustsigma.cli import main
from robustsigma.cli.evaluate import PRESETS

SWEPT = Path(__file__).resolve().parents[2] / "configs" / "evaluate" / "swept.yaml"
TINY = [
    f"--{name}={value}"
    for name, value in {
        "dataset.size": 16,
        "dataset.train": 24,
        "dataset.val": 12,
        "dataset.test": 8,
        "architecture.arguments": "{width: 4}",
        "training.epochs": 1,
        "retraining.epochs": 1,
        "retraining.samples": 6,
    }.items()
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS.names)
def test_the_config_sweeps_every_preset(name):
    found = PRESETS.load(name, ["--config", str(SWEPT)])
    assert found.swept == [("retrain", "gaussian"), ("on_the_fly", "gaussian")]
    own = {getattr(found.retraining, protocol)["gaussian"].std for protocol, _ in found.swept}
    assert own <= set(found.sweep.stds), "the preset's own std is not tried"
    assert min(found.sweep.stds) < min(own)
    assert max(own) < max(found.sweep.stds)


@pytest.mark.slow
def test_the_config_runs_and_a_sweep_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for each table in one part
    arguments = ["sweep", "--config", str(SWEPT), *TINY, "--out", str(tmp_path)]
    assert main([*arguments, "--sweep.stds", "[0.05, 0.3]"]) == 0
    found = json.loads((tmp_path / "sweep" / "table.json").read_text("utf-8"))
    assert [(entry["regime"], len(entry["rows"]), entry["images"]) for entry in found] == [
        ("gaussian/retrain", 2, 12), ("gaussian/on_the_fly", 2, 12)
    ]  # fmt: skip
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("Std of the Gaussian noise") == shown.out.count("\u25b2 best") == 2
    assert str(tmp_path / "sweep" / "table.json") in shown.out.replace("\n", "")
    assert main([*arguments, "--sweep.stds", "[0.05, 0.3]"]) == 0
    again = capsys.readouterr().out
    assert again.count("was trained before") == 5
    assert again.count("were shown to all models before") == 1
    assert again[again.index("Std of") :] == shown.out[shown.out.index("Std of") :]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "sweep: expected standard deviations to try, as in --sweep.stds .* got none"),
        (["--sweep.stds", "[0.1]"], "stds: expected at least two"),
        (["--sweep.stds", "[0.1, 0.2]", "--sweep.image", "3"], "sweep"),
        (["--sweep.stds", "[0.1, 0.2]", "--retraining.retrain", "{}", "--retraining.on_the_fly", "{}"], "sweep: exp"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ROBUSTSIGMA_DEBUG", raising=False)
    assert main(["sweep", *arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robustsigma sweep: error: ")
    assert re.search(named, line)
    assert not (tmp_path / "out").exists()
