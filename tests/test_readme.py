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


def said(start: str, page: str = README) -> str:
    """Return the bullet of a page that starts with some words in bold."""
    (bullet,) = re.findall(rf"^- \*\*{start}.*?(?=^- \*\*|^#)", page, re.MULTILINE | re.DOTALL)
    return " ".join(bullet.split())


def in_order(expected: list[str], text: str) -> bool:
    """Return whether the numbers of a text hold others in their order."""
    found = iter(re.findall(r"\d+(?:\.\d+)?", text))
    return all(number in found for number in expected)


def test_the_speed_of_the_readme_is_what_was_measured():
    cpu, gpu = (stored(name)["nets"] for name in ("speed_cpu", "speed_cuda"))
    limit = [nets["resnet18"]["rows"][name]["efficiency"]["median"] for nets in (cpu, gpu) for name in ("SIGMA", "IG")]
    (alone,) = gpu["resnet18"]["rows"]["SIGMA"]["peers"]
    peers = [gpu["small"]["rows"][name]["peers"][0]["times_ours"]["median"] for name in ("FGSM", "PGD")]
    expected = [f"{share:.2f}" for share in limit] + [f"{alone['times_ours']['median']:.0f}"]
    assert in_order([*expected, *(f"{share:.2f}" for share in peers)], said("Speed"))
    page = RESULTS.split("What falls short")[1].split("\n\n")[0]
    for name, rows in (("small", ("FGSM", "PGD", "TorchAttack")), ("resnet18", ("FGSM", "TorchAttack"))):
        faster = [gpu[name]["rows"][row]["peers"][0]["times_ours"]["median"] for row in rows]
        assert max(faster) < 1
        assert all(f"{share:.2f}" in page for share in faster)


def test_the_cost_of_a_step_is_what_was_measured():
    steps = [data["steps"] for data in stored("training_step")["datasets"].values()]
    plain, banked = ([f"{each[name]['ratio']:.1f}" for each in steps] for name in ("mixed", "mixed, bank"))
    assert in_order([*plain, *banked], said("A training step"))


def test_the_share_of_walks_that_converge_is_what_was_measured():
    reached = [
        next(entry["converged"]["mean"] for entry in entries if entry["name"] == "logit, the default")
        for name in ("", "_photographs_mobilenetv2", "_photographs_squeezenet")
        for entries in stored(f"sigma_settings{name}")["datasets"].values()
    ]
    assert in_order([f"{share:.0%}"[:-1] for share in reached], said("With the paper's settings"))


def test_the_rankings_of_the_readme_are_those_of_the_results():
    text, every = said("As an attribution method"), stored("orders")
    summary = [re.findall(r"\d+", line.split(": ", 1)[1]) for line in every["summary"]]
    page = [line for line in RESULTS.splitlines() if " rankings " in line]
    assert all(any(in_order(counts, line) for line in page) for counts in summary)
    (count, held, undecided, none), idg, (paths, all_of_them, *_) = summary
    assert (none, paths) == ("0", all_of_them)
    assert in_order([count, held, undecided], text)
    assert f"all {paths} rankings" in text
    assert in_order(idg, text.split("IDG")[1])
    sic = [order for order in every["orders"] if (order["method"], order["metric"]) == ("SIGMA", "sic")]
    cnns = ("MobileNetV2", "EfficientNet-Lite0", "SqueezeNet")
    claimed = [order["verdict"] for order in sic if order["claimed"] and order["network"] in cnns]
    assert claimed == ["holds"] * 9


def test_what_the_readme_says_of_sigma_on_photographs_is_what_was_measured():
    text = said("As an attribution method")
    files = ("mobilenetv2", "efficientnet_lite0", "squeezenet", "vit")
    of = {stored(f"benchmark_{name}")["models"][0]["id"]: stored(f"benchmark_{name}") for name in files}
    sigma = {
        model: next(c for c in found["cells"] if (c["method"], c["metric"]) == ("SIGMA", "sic"))
        for model, found in of.items()
    }
    assert all(cell["best"] for cell in sigma.values())
    ahead = re.search(r"second-best method on (\S+) and ([^;]+);", text)
    assert ahead is not None
    assert {model for model, cell in sigma.items() if cell["clear"]} == set(ahead.groups())
    stopped = {
        model: re.search(r"SIGMA did not converge on (\d+)%", " ".join(flag["message"] for flag in found["flags"]))
        for model, found in of.items()
    }
    assert in_order([match[1] for match in stopped.values() if match], text)
    assert "three" in text
    for name in ("benchmark_coco", "benchmark_coco_efficientnet_lite0"):
        (cell,) = (c for c in stored(name)["cells"] if (c["method"], c["metric"]) == ("SIGMA", "iou"))
        assert cell["best"]
        assert not cell["clear"]
