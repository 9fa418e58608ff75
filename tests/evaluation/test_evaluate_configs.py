"""Every file of configs/evaluate, run on small scans with a small network instead of what the reader has."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file

from robustsigma.cli.evaluate import PRESETS
from robustsigma.data import Baggage
from robustsigma.evaluation import run_study
from robustsigma.models import Architecture, network

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "evaluate").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.third_party_rng  # a network that is not trained here draws its weights
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    pytest.importorskip("matplotlib")
    settings = PRESETS.parse("evaluate", "", "runs", ["--config", str(path)]).settings
    training = replace(settings.training, epochs=min(1, settings.training.epochs), augment=None)
    weights = None
    if training.epochs == 0:
        weights = str(tmp_path / "weights.safetensors")
        save_file(network("small_cnn", 3, 5, {"width": 4}).state_dict(), weights)
    small = replace(
        settings,
        dataset=Baggage(size=16, train=24, val=10, test=10),
        architecture=Architecture("small_cnn", {"width": 4}, weights=weights),
        mean=(0.5,),
        std=(0.25,),
        training=training,
        retraining=replace(settings.retraining, samples=4, epochs=1),
        checks=replace(settings.checks, images=2, queries=4),
        seeds=settings.seeds[:2],
        num_workers=0,
    )
    if small.sweep is not None:
        small = replace(small, sweep=replace(small.sweep, stds=small.sweep.stds[:2], images=5))
    found = run_study(small, tmp_path / "out", console=Console(file=io.StringIO())).to_dict()
    regimes = {regime["id"] for regime in found["regimes"]}
    assert {f"{name}/retrain" for name in settings.retraining.retrain} <= regimes
    assert {f"{name}/on_the_fly" for name in settings.retraining.on_the_fly} <= regimes
    assert {condition["id"].split("/")[0] for condition in found["conditions"]} >= set(settings.conditions)
