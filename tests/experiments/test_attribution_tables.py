"""The tables in docs/results/attribution.md come from files of results, and the scripts that make them run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from robustsigma.data import Baggage
from robustsigma.models import Architecture, ModelCard, save_model

ROOT = Path(__file__).resolve().parents[2]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts(sentence: str) -> tuple[set[str], set[str]]:
    """Return the names and the numbers of a sentence, whatever its words and their order."""
    names = re.findall(r"[A-Z][\w-]*(?: [A-Z][\w-]*)*|gradient|deletion", sentence)
    return set(names), set(re.findall(r"\d+(?:\.\d+)?", sentence))


def test_the_page_says_what_the_benchmark_says():
    results = json.loads((ROOT / "results" / "benchmark_baggage.json").read_text())
    made, page = script("attribution_table"), (ROOT / "docs" / "results" / "attribution.md").read_text()
    assert made.table(results) in page
    assert made.caption(results) in page
    lines = [line for line in page.splitlines() if line.startswith("- ")]
    for sentence in results["findings"]:
        assert any(facts(sentence) == facts(line) for line in lines), sentence


def test_the_page_says_what_the_photographs_say():
    made, page = script("attribution_table"), (ROOT / "docs" / "results" / "attribution.md").read_text()
    named = page.split("## On photographs")[1].split("\n|")[0]  # the lines above the section's first table
    files = [json.loads((ROOT / name).read_text()) for name in re.findall(r"results/\w+\.json", named)]
    orders = json.loads((ROOT / "results" / "orders.json").read_text())["orders"]
    assert {results["models"][0]["id"] for results in files} == {o["network"] for o in orders if o["metric"] == "sic"}
    for metric in ("sic", "difference"):
        assert made.compared(files, metric) in page
    for results in files:
        assert made.caption(results) in page


def test_the_page_says_what_the_sanity_of_metrics_says():
    results = json.loads((ROOT / "results" / "metric_sanity.json").read_text())
    made, page = script("metric_sanity"), (ROOT / "docs" / "results" / "attribution.md").read_text()
    assert "\n".join(made.lines(results["entries"])) in page
    for entry in results["entries"]:
        low = entry["perfect over random"][1]
        assert (low > 0) == (not entry["metric"].endswith("to black")), entry["metric"]


def test_metric_sanity_runs(tmp_path, capsys, monkeypatch):
    source = Baggage(size=16, train=20, val=5, test=60)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        architecture = Architecture(arguments={"width": 4})
        net = architecture.build(3, 5)
    card = ModelCard(architecture, source.classes, source.shape)
    model = save_model(tmp_path / "net.safetensors", net, card)
    made = script("metric_sanity")
    import dataclasses

    from robustsigma.cli.benchmark import PRESETS

    small = dataclasses.replace(PRESETS.load("baggage"), dataset=source)
    monkeypatch.setattr(type(PRESETS), "load", lambda self, name: small)
    made.main(["--model", str(model), "--images", "4", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "metric_sanity.json").read_text())
    assert {"Insertion", "mIoU", "Deletion, to black"} <= {entry["metric"] for entry in found["entries"]}
    miou = next(entry for entry in found["entries"] if entry["metric"] == "mIoU")
    assert miou["perfect"]["mean"] == pytest.approx(1)
    assert miou["constant"]["mean"] == 0
    assert "| mIoU |" in capsys.readouterr().out
