import functools
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from robustsigma.report import text

pytestmark = pytest.mark.third_party_rng  # what the command imports; weights and dropout
FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(scope="module")
def study():
    """Return the command as a module; its folder is on the path, as it is for a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("does_it_help", FOLDER / "does_it_help.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        patch.setattr(module, "load", functools.cache(module.load))
        yield module
    for name in [name for name in sys.modules if name.partition(".")[0] in ("study", "training_step")]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baggage", "cifar10", "fast"])
def test_regimes_are_matched_by_steps_and_by_augmented_images(study, name):
    setup = study.load(name, root="." if name == "cifar10" else None)
    images = 3000 if name == "cifar10" else setup.settings.dataset.train
    rows = study.plans(study.SAMPLES, setup.regimes, std=0.2)
    assert len({row.name for row in rows}) == len(rows) == (4 if name == "fast" else 9)
    for row in rows:
        each = row.training
        assert each.epochs * each.steps(images, 64) == pytest.approx(4 * -(-images // 64), rel=0.02, abs=1)
        augmented = each.epochs * (each.samples or each.share * images)
        assert augmented == pytest.approx(images, rel=0.05)
    noises = [row.training.perturbation for row in rows if row.name == study.GAUSSIAN]
    assert [noise.std for noise in noises] == [0.2]


def test_a_row_that_keeps_its_epochs_is_not_trained_again(study):
    rows = study.plans(study.SAMPLES, study.load("fast").regimes, std=0.1)
    epochs = {row.name: row.training.epochs * (2 if row.name == "clean" else 1) for row in rows}
    timed = study.by_time(rows, epochs)
    assert [row.name for row in timed] == [row.name for row in rows]
    assert [row.id for row, first in zip(timed, rows, strict=True) if row != first] == ["time/clean"]
    assert timed[0].training.epochs == 8


@pytest.mark.slow
def test_each_variation_changes_something(study):
    setup = study.load("baggage", root=None)
    rows = study.plans(study.VARIATIONS, {study.REFERENCE: setup.regimes[study.REFERENCE], **setup.variations}, 0.1)
    assert len({str(row.training) for row in rows}) == len({row.id for row in rows}) == len(rows) == 14
    assert {row.training.epochs for row in rows} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baggage", "cifar10"])
def test_settings_are_those_of_the_stored_results(study, name):
    setup = study.load(name, root="." if name == "cifar10" else None)
    stored = json.loads((FOLDER.parent / "results" / f"does_it_help_{name}.json").read_text(encoding="utf-8"))
    names = [row["name"] for row in stored["tables"]["variations"]["rows"]]
    assert list(stored["plans"]) == list(setup.regimes)
    assert names[names.index(study.REFERENCE) + 1 :] == list(setup.variations)


def test_the_page_is_made_from_the_stored_results(study, tmp_path):
    for path in (FOLDER.parent / "results").glob("does_it_help_*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    page = study.page.write(tmp_path).read_text(encoding="utf-8")
    assert page == (FOLDER.parent / "results" / "does_it_help.md").read_text(encoding="utf-8")


def test_a_budget_of_plain_steps_becomes_epochs(study):
    cost = study.cost.Cost(ratio=5.0, once=0.0)
    budget = cost.of(epochs=4, steps=30)
    assert budget == 600
    assert cost.epochs(budget, 30) == 4
    assert study.cost.Cost(ratio=1.0, once=150.0).epochs(budget, 40) == 11


def _result(study, ahead):
    """Return a result in which SIGMA on the fly is ahead of each control by this much, +-0.01."""
    rows = [{"name": name} for name in ("base", "clean", "gaussian", "sigma")]
    accuracy = {"mean": 0.4, "low": 0.3, "high": 0.5}
    cells = [
        {"row": row["name"], "condition": name, "accuracy": accuracy, "chance": 0.2, "above_chance": True, "flags": [],
         "unconverged": 0.5 if name == "sigma/adaptive" else None}
        for row in rows
        for name in ("clean", "sigma/adaptive", "combined", "others")
    ]  # fmt: skip
    differences = [
        {
            "row": "sigma",
            "against": against,
            "condition": name,
            "mean": ahead,
            "low": ahead - 0.01,
            "high": ahead + 0.01,
            "n": 300,
        }
        for against in ("clean", "gaussian")
        for name in ("clean", "sigma/adaptive", "combined", "others")
    ]  # fmt: skip
    table = {"rows": rows, "cells": cells, "differences": differences}
    tables = {"samples": table, "time": table, "variations": table}
    return study.page.correct({"dataset": {"title": "scans"}, "tables": tables, "sweep": []})


def test_a_table_is_corrected_for_what_it_compares_with_one_row(study):
    found = _result(study, 0.0)
    entries = found["tables"]["samples"]["differences"]
    entries[0].update(mean=0.012, low=0.001, high=0.023)  # alone, its interval excludes zero
    alone = [entry for entry in entries if entry["against"] == "clean"]
    study.page.correct(found)
    assert entries[0]["p_holm"] == pytest.approx(len(alone) * 0.0325, rel=0.01)
    assert "**" not in study.page.bold(entries[0])


@pytest.mark.parametrize(
    ("ahead", "cell", "verb"),
    [
        (0.05, "**+5.0 (+4.0 to +6.0)**", "significantly higher in"),
        (-0.05, "**-5.0 (-6.0 to -4.0)**", "significantly lower in"),
        (0.0, "0.0 (-1.0 to +1.0)", "not significantly different in"),
    ],
)
def test_conclusions_follow_the_intervals(study, ahead, cell, verb):
    cell = cell.replace("-", text.MINUS)
    head, *rows = study.page.short([_result(study, ahead)])
    assert rows == [
        # with and without SIGMA's own condition
        ["scans", f"on the fly, matched by {by}", f"{cell} / {cell}", f"{cell} / {cell}", "not measured / not measured"]
        for by in ("samples", "time")
    ]
    assert len(head) == 5
    told = list(study.page.conclusions(_result(study, ahead)))
    effects = [line for line in told if line.startswith("SIGMA on the fly, matched")]
    assert len(effects) == 4
    assert all(f"{verb} clean images" in line for line in effects)
    assert told[-1].endswith("50% to 50% of SIGMA's adaptive walks did not converge, so this column is an upper bound.")


def test_samples_that_were_cut_and_a_sweep_that_ended_too_soon_are_told(study):
    found = _result(study, 0.0)
    found["tables"]["samples"]["rows"][-1] |= {"converged": 0.03, "walk_steps": 19.8}
    tried = [{"std": std} for std in (0.1, 0.2, 0.3)]
    found["sweep"] = [{"best": 0.3, "rows": tried}]
    made, edge = list(study.page.conclusions(found))[-2:]
    assert "SIGMA on the fly 3% (in 20 steps); the rest were stopped early" in made
    assert edge == "The std of the best Gaussian noise, 0.3, is the largest value tried; a larger one might be better."
    found["sweep"] = [{"best": 0.2, "rows": tried}]
    assert list(study.page.conclusions(found))[-1] == made


def _arguments(folder):
    return ["baggage", "--fast", "--seeds", "1", "--out", str(folder / "run"), "--results", str(folder)]


@pytest.mark.slow
def test_the_fast_form_runs(study, tmp_path):
    pytest.importorskip("matplotlib")
    study.main(_arguments(tmp_path))
    found = json.loads((tmp_path / "does_it_help_baggage.json").read_text())
    assert set(found["tables"]) == {"samples", "time", "variations"}
    rows = {row["name"]: row for row in found["tables"]["samples"]["rows"]}
    assert set(rows) == {"base", "clean", "gaussian", "sigma_transfer", "sigma"}
    assert len({rows[name]["steps"] for name in ("clean", "gaussian", "sigma")}) == 1
    longer = {row["name"]: row for row in found["tables"]["time"]["rows"]}
    assert longer["clean"]["steps"] > rows["clean"]["steps"]
    assert longer["clean"]["cost"] <= found["budget"] + 1e-6
    cells = found["tables"]["samples"]["cells"]
    assert {cell["chance"] for cell in cells} == {0.2}
    assert all(0 <= c["unconverged"] <= 1 for c in cells if c["condition"] == "sigma/adaptive")
    page = (tmp_path / "does_it_help.md").read_text()
    assert page.index("| SIGMA samples |") < page.index("## How to read")
    assert str(tmp_path) not in page + json.dumps(found)
    assert all((tmp_path / f"does_it_help_baggage{kind}.png").stat().st_size for kind in ("", "_variations"))
    (tmp_path / "does_it_help.md").unlink()
    study.main(["page", "--results", str(tmp_path)])
    assert (tmp_path / "does_it_help.md").read_text() == page


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(study, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    study.main(_arguments(tmp_path))
    found = json.loads((tmp_path / "does_it_help_baggage.json").read_text())
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    lost = next(path for path in models if path.parent.name == "seed0" and path.name == "samples.sigma.safetensors")
    lost.unlink()
    capsys.readouterr()
    study.main(_arguments(tmp_path))
    assert "seed 0, samples/sigma: training" in capsys.readouterr().out
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    assert {path for path in models if again[path] != models[path]} == {lost}
    repeated = json.loads((tmp_path / "does_it_help_baggage.json").read_text())
    assert repeated["tables"]["samples"]["cells"] == found["tables"]["samples"]["cells"]
    assert repeated["seconds"] > found["seconds"]
