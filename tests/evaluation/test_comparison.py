"""`compare`: paired differences of stored outcomes, gates, and the formats that CI systems read."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from matrix_case import N, outcomes_of, store

from robustsigma import FGSM, PGD, evaluate
from robustsigma.cli import main
from robustsigma.engine.metrics import holm, paired_difference
from robustsigma.evaluation.comparison import compare
from robustsigma.runs.files import write_json
from robustsigma.runs.results import RobustnessResults

SETTINGS = {"clean": "Identity()", "fgsm/adaptive": "FGSM(eps=0.03)", "pgd/adaptive": "PGD(eps=0.03)"}


def run(folder, models, *, seeds=(0,), settings=SETTINGS, data="images", flags=(), shift=0):
    """Write a finished run: for each model, how many images are correct under each condition."""
    conditions = [
        {"id": c, "name": c.split("/")[0], "attack_setting": "adaptive" if "/" in c else "none", "settings": text}
        for c, text in settings.items()
    ]
    attacks = [c for c in settings if "/" in c]
    worst = {"id": "worst/all", "name": "all", "attack_setting": "worst", "settings": "all", "members": attacks}
    moved = {"id": "fgsm/transfer", "name": "fgsm", "attack_setting": "transfer", "settings": "FGSM(eps=0.03)"}
    cells = [
        {"regime": model, "condition": c, "accuracy": {}, "flags": [{"code": f, "message": "doubt"} for f in flags]}
        for model in models
        for c in attacks
    ]
    for model, counts in models.items():
        for seed in seeds:
            found = (outcomes_of(correct, shift=shift) for correct in counts)
            store(folder, seed, model, dict(zip(settings, found, strict=True)))
    write_json(folder / "settings.json", {"data": data})
    RobustnessResults(
        seeds=list(seeds),
        conditions=[*conditions, worst, moved],
        regimes=[{"id": model, "name": model, "protocol": "none"} for model in models],
        cells=cells,
    ).write(folder / "results.json")
    return folder


@pytest.fixture
def runs(tmp_path):
    return run(tmp_path / "a", {"net": (180, 120, 100)}), run(tmp_path / "b", {"other": (182, 90, 99)})


def test_differences_are_paired_and_corrected_as_one_family(runs):
    found = compare(*runs)
    assert [each.condition for each in found.changes] == [*SETTINGS, "worst/all"]
    table = {each.condition: each for each in found.changes}
    expected = paired_difference(np.arange(N) < 90, np.arange(N) < 120)
    assert table["fgsm/adaptive"].difference == expected
    assert [each.p_holm for each in found.changes] == holm([each.difference for each in found.changes])
    assert {name: each.verdict for name, each in table.items()} == {
        "clean": "same",
        "fgsm/adaptive": "worse",
        "pgd/adaptive": "same",
        "worst/all": "worse",  # 90 instead of 100 images, all of those that were correct before
    }
    assert table["worst/all"].before.mean == 100 / N
    assert found.changes[0].model == "other"
    assert found.left_out == ()


def test_the_direction_of_the_comparison(runs):
    found = {each.condition: each.verdict for each in compare(*runs[::-1]).changes}
    assert found["fgsm/adaptive"] == "better"


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ([], []),
        (["--fail-below", "-1"], ["fgsm/adaptive", "worst/all"]),
        (["--fail-below", "-5"], ["fgsm/adaptive"]),
        (["--fail-below", "0"], ["fgsm/adaptive", "pgd/adaptive", "worst/all"]),
        (["--fail-if-worse"], ["fgsm/adaptive", "worst/all"]),
        (["--fail-if-worse", "--conditions", "clean", "pgd/adaptive"], []),
    ],
)
def test_gates(runs, tmp_path, options, refused, capsys):
    files = [
        "--junit",
        str(tmp_path / "j.xml"),
        "--sarif",
        str(tmp_path / "s.json"),
        "--json",
        str(tmp_path / "c.json"),
    ]
    assert main(["compare", *map(str, runs), *options, *files]) == (1 if refused else 0)
    told = capsys.readouterr().out  # in 80 columns
    assert "refused" in told or not refused
    assert "pgd adaptive" in told
    assert "Difference" in told
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == refused
    assert suite.get("failures") == str(len(refused))
    log = json.loads((tmp_path / "s.json").read_text())
    assert log["version"] == "2.1.0"
    assert [r["level"] for r in log["runs"][0]["results"]] == ["error"] * len(refused)
    assert log["runs"][0]["results"] == [] or "points" in log["runs"][0]["results"][0]["message"]["text"]
    assert len(json.loads((tmp_path / "c.json").read_text())["changes"]) == len(suite)


def test_a_flag_of_either_run_is_shown(tmp_path):
    first = run(tmp_path / "a", {"net": (180, 120, 100)})
    second = run(tmp_path / "b", {"net": (180, 120, 100)}, flags=("masked",))
    found = {each.condition: each.flags for each in compare(first, second).changes}
    assert found == {"clean": (), "fgsm/adaptive": ("masked",), "pgd/adaptive": ("masked",), "worst/all": ("masked",)}


def test_two_models_of_one_run(tmp_path):
    folder = run(tmp_path / "a", {"base": (180, 50, 40), "sigma/retrain": (180, 110, 90)}, seeds=(0, 1))
    found = compare(folder, folder, models=("base", "sigma/retrain"))
    assert [each.verdict for each in found.changes] == ["same", "better", "better", "better"]
    assert found.changes[0].difference.n == N
    assert all(each.verdict == "same" for each in compare(folder, folder).changes)


def test_another_number_of_trainings_is_averaged(tmp_path):
    first = run(tmp_path / "a", {"net": (100, 100, 100)}, seeds=(0,))
    second = run(tmp_path / "b", {"net": (120, 120, 120)}, seeds=(0, 1, 2))
    assert compare(first, second).changes[0].difference.mean == pytest.approx(0.1)


def test_conditions_with_other_settings_are_left_out(tmp_path):
    first = run(tmp_path / "a", {"net": (100, 100, 100)})
    second = run(tmp_path / "b", {"net": (120, 120, 120)}, settings={**SETTINGS, "fgsm/adaptive": "FGSM(eps=0.1)"})
    found = compare(first, second)
    assert [each.condition for each in found.changes] == ["clean", "pgd/adaptive"]
    assert "FGSM(eps=0.03); FGSM(eps=0.1)" in found.left_out[0]
    assert "worst/all" in found.left_out[1]


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({"data": "others"}, {}, "a run on the images of"),
        ({}, {"models": ("net", "nett")}, "did you mean 'net'"),
        ({}, {"models": ("a", "b", "c")}, "one name for both runs, or two"),
        ({}, {"conditions": ("fgsm",)}, "fgsm/adaptive"),
        ({"settings": {"x": "X()", "y/adaptive": "Y()", "z/adaptive": "Z()"}}, {}, "at least one that both runs have"),
    ],
)
def test_errors(tmp_path, change, options, told):
    first = run(tmp_path / "a", {"net": (100, 100, 100)})
    second = run(tmp_path / "b", {"net": (100, 100, 100)}, **change)
    with pytest.raises(ValueError, match=told):
        compare(first, second, **options)


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "the folder of a finished run of evaluate" in capsys.readouterr().err


def test_runs_of_given_models(tmp_path):
    images, labels = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)) for _ in range(2)]
    attacks = {"FGSM": FGSM(4 / 255), "PGD": PGD(4 / 255, steps=2)}
    for name, net in zip("ab", nets, strict=True):
        evaluate(net, (images, labels), attacks, checks=None, out=tmp_path / name, progress=False)
    both = evaluate(dict(zip("ab", nets, strict=True)), (images, labels), attacks, checks=None, progress=False)
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [each.condition for each in found.changes] == [
        "clean",
        "FGSM/adaptive",
        "PGD/adaptive",
        "worst/L\u221e 0.0157",
    ]
    for each in found.changes[:3]:
        before, after = (both.accuracy(name, each.condition).mean for name in "ab")
        assert (each.before.mean, each.after.mean) == (before, after)
        assert each.difference.mean == pytest.approx(after - before)
    assert main(["card", str(tmp_path / "a")]) == 0
    assert json.loads((tmp_path / "a" / "card.json").read_text())["weights"]["given"] != "unknown"
    lines = (tmp_path / "a" / "card.md").read_text().splitlines()
    assert any(line.startswith("- SHA-256 of the weights: `") for line in lines)
    assert not any(line.endswith(": ") for line in lines), "nothing is listed without a value"


@pytest.mark.parametrize(
    ("goal", "says"), [("any wrong class", ""), ("a wrong class, chosen: 3", ", goal: a wrong class, chosen: 3")]
)
def test_a_card_withdraws_what_has_a_flag(tmp_path, goal, says):
    folder = run(tmp_path / "a", {"net": (180, 120, 100)})
    results = json.loads((folder / "results.json").read_text())
    accuracy = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": N}
    masked = {"code": "masked", "message": "One step finds more errors."}
    names = [condition["id"] for condition in results["conditions"]]
    results["cells"] = [
        {
            "regime": "net",
            "condition": c,
            "n": N,
            "accuracy": accuracy,
            "flags": [masked] if c == "pgd/adaptive" else [],
        }
        for c in names
    ]
    results["conditions"][1]["threat"] = {"norm": "L\u221e", "eps": 0.03, "knowledge": "weights", "goal": goal}
    write_json(folder / "results.json", results)
    assert main(["card", str(folder)]) == 0
    card = json.loads((folder / "card.json").read_text())
    assert [claim["condition"] for claim in card["claims"]] == ["clean", "fgsm/adaptive"]
    # The worst case rests on the flagged attack.
    assert [claim["condition"] for claim in card["withdrawn"]] == ["pgd/adaptive", "worst/all"]
    _, front, body = (folder / "card.md").read_text().split("---\n", 2)
    (index,) = yaml.safe_load(front)["model-index"]
    claimed = [metric["name"] for result in index["results"] for metric in result["metrics"]]
    assert claimed == ["Accuracy on clean images", f"Accuracy under FGSM (L\u221e, eps 0.03{says})"]
    assert index["results"][1]["metrics"][0]["value"] == 0.5
    assert masked["message"] in body.split("## Withdrawn")[1]
    assert "PGD" not in body.split("## Withdrawn")[0]


def test_a_card_of_an_unknown_model(tmp_path, capsys):
    folder = run(tmp_path / "a", {"net": (180, 120, 100)})
    assert main(["card", str(folder), "--model", "ne"]) == 2
    assert "expected one of 'net'" in capsys.readouterr().err
