"""The Python of README and guide runs as it stands there, on a small network and images; what is quoted is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cases
import judged
import pytest
from torch.utils.data import TensorDataset

from robustsigma.evaluation.lightning import quiet

ROOT = Path(__file__).parents[1]
README, GUIDE, RESULTS = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md", "docs/results.md")
)
BLOCKS = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)


@pytest.mark.third_party_rng  # a new network draws its weights, and a loader its order
@pytest.mark.parametrize("place", range(len(BLOCKS)))
def test_runs(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels, masks = judged.scene(4)
    data = TensorDataset(images, labels)
    names: dict[str, Any] = {"images": images, "labels": labels, "masks": masks, "net": judged.Colours()}
    names |= {"my_train": data, "my_val": data, "my_test": data, "my_classes": ("a", "b", "c"), "__name__": "mine"}
    if place:
        names["classifier"] = cases.Classifier(judged.Colours())
    code = BLOCKS[place].replace(
        "max_epochs=20", 'max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False'
    )
    assert (code != BLOCKS[place]) == ("Trainer" in code)
    with quiet():
        exec(compile(code, f"block {place}", "exec"), names)
    if "for method in" in code:
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) < 15
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == 3 * 7
        assert any("pointing_game" in line for line in printed)
    if "trainer.test" in code:
        assert set(names["trainer"].callback_metrics) >= {"test_clean_acc", "test_noise_acc", "test_SIGMA_acc"}
    if "class Saliency" in code:
        found = names["Saliency"]()(names["classifier"], images, labels)
        assert (found.values.flatten(1).sum(1) > 0).all()


def test_there_is_python_in_it():
    assert len(BLOCKS) == 4


def test_what_is_said_of_retraining_is_what_the_study_says():
    page = (ROOT / "results" / "does_it_help.md").read_text(encoding="utf-8").splitlines()
    section = RESULTS.split("## Does retraining with SIGMA samples help?")[1].split("\n## ")[0]
    said = [line for line in section.splitlines() if line.startswith(("- ", "|"))]
    assert len(said) > 10
    quoted = [line.strip() for line in README.splitlines() if line.startswith("  |")]
    assert len(quoted) == 4
    assert [line for line in (*said, *quoted) if line not in page] == []


def stored(name: str) -> Any:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_numbers_of_the_readme_are_those_of_the_results():
    text = " ".join(README.split())
    cpu, gpu = (stored(name)["nets"]["resnet18"]["rows"] for name in ("speed_cpu", "speed_cuda"))
    limit = [[f"{rows[name]['efficiency']['median']:.2f}" for name in ("SIGMA", "IG")] for rows in (cpu, gpu)]
    assert f"SIGMA {limit[0][0]} and IG {limit[0][1]} on two CPU threads, {' and '.join(limit[1])} on an H200" in text
    (alone,) = gpu["SIGMA"]["peers"]
    assert f"SIGMA is {alone['times_ours']['median']:.0f} \N{MULTIPLICATION SIGN} as fast as path after path" in text
    steps = [data["steps"] for data in stored("training_step")["datasets"].values()]
    (scans, digits), banked = ([f"{each[name]['ratio']:.1f}" for each in steps] for name in ("mixed", "mixed, bank"))
    said = f"{scans} plain steps on the scans and {digits} on MNIST5k, with a bank of samples {' and '.join(banked)}."
    assert said in text
    orders = dict(line.split(": ", 1) for line in stored("orders")["summary"])
    every, held, _, reversed_ = re.findall(r"\d+", orders["SIGMA, tables 1 and 2"])
    assert f"of the {every} orders that its paper's tables imply {held} hold, none is reversed" in text
    assert reversed_ == "0"
    every, held, *_ = re.findall(r"\d+", orders["credible paths"])
    assert f"({held} of {every} orders)" in text
    every, held, _, reversed_ = re.findall(r"\d+", orders["IDG, table 1"])
    assert f"of IDG's {every} orders {held} hold and {reversed_} are reversed" in text
    arrived = [
        next(entry["converged"]["mean"] for entry in entries if entry["name"] == "logit, the default")
        for entries in stored("sigma_settings")["datasets"].values()
    ]
    assert sorted(f"{share:.0%}" for share in arrived) == ["100%", "81%"]
    assert "(81 % and 100 % arrive on scans and digits)" in text
