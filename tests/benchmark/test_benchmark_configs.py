"""Every file of configs/benchmark, run on small scans with a small network instead of what the reader has."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from robustsigma.benchmarking import run_benchmark
from robustsigma.cli.benchmark import PRESETS
from robustsigma.data import Baggage
from robustsigma.models import Architecture, ModelCard, save_model

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "benchmark").glob("*.yaml"))
SOURCE = Baggage(size=16, train=20, val=5, test=60)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    architecture = Architecture("small_cnn", {"width": 4})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        net = architecture.build(3, 5)
    path = tmp_path_factory.mktemp("model") / "net.safetensors"
    save_model(path, net, ModelCard(architecture, SOURCE.classes, SOURCE.shape))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(path, model, tmp_path):
    pytest.importorskip("matplotlib")
    settings = PRESETS.parse("benchmark", "", "runs", ["--config", str(path)]).settings
    # The small network has other layers, and its images no room for a window of 32 pixels.
    methods = {
        name: each for name, each in settings.methods.items() if "layer=" not in repr(each) and name != "Occlusion"
    }
    settings = replace(settings, methods=methods)
    small = replace(settings, dataset=SOURCE, models={"a": model}, images=2, checked=min(1, settings.checked))
    found = run_benchmark(small, tmp_path, console=Console(file=io.StringIO())).results.to_json()
    evaluated = {cell["method"] for cell in found["cells"]}
    assert evaluated | {left["method"] for left in found["left_out"]} == set(settings.methods)
    attention = {"Attention rollout", "Attention attribution", "LeGrad"}  # which a network without it has not
    assert {left["method"] for left in found["left_out"]} <= attention
    listed = {metric["id"] for metric in found["metrics"]}
    assert listed >= ({"insertion (RISE)", "sic (PIC)"} if settings.protocols else {"insertion", "sic", "forwards"})
    coarser = [each["id"] for each in found["protocols"] or [] if "pixels at a time here" in each["differences"]]
    assert coarser == (["RISE", "IDG-2024", "MAS-2024", "LeRF/MoRF"] if settings.protocol_step else [])
    assert any("pixels at a time" in each for each in found["findings"]) == bool(coarser)
    assert json.loads((tmp_path / "results.json").read_text())["run"]["command"] is None
