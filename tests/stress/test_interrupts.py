"""Runs that are interrupted, killed or out of disk go on and end with the results of one that was not."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.models import Architecture, ModelCard, save_model

PATH = Path(__file__).resolve().parents[2] / "experiments" / "stress_interrupts.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    architecture, source = Architecture("small_cnn", {"width": 4}), Baggage(size=16, train=20)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = architecture.build(3, 5)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_model(path, net, ModelCard(architecture, source.classes, source.shape))


def _augment(model, out):
    return main(["augment", "--source=Baggage", "--source.size=16", "--source.train=150", "--count=150",
                 f"--model={model}", "--perturbation=GaussianNoise", f"--out={out}"])  # fmt: skip


def _tree(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_augment_goes_on_wherever_a_write_was_cut_short(error, model, tmp_path, monkeypatch, capsys):
    assert _augment(model, tmp_path / "whole") == 0
    whole, replace, writes = _tree(tmp_path / "whole"), Path.replace, []
    for begin in (0, 80):

        def cut_short(self, target, begin=begin):
            if len(writes) - begin == 80:  # in the second of the batches that it begins with
                raise error
            writes.append(Path(target).relative_to(tmp_path / "parts"))
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut_short)
            assert _augment(model, tmp_path / "parts") == (130 if error is KeyboardInterrupt else 2)
        told = capsys.readouterr().err
        assert ("could not write" in told and "No space left" in told) == (error is not KeyboardInterrupt)
        assert not list((tmp_path / "parts").rglob("*.part"))
    assert sum(path.suffix == ".csv" for path in set(writes)) == sum(path.suffix == ".csv" for path in writes) == 2
    assert len(writes) - len(set(writes)) < 64, "a finished batch was made again"
    assert _augment(model, tmp_path / "parts") == 0
    assert _tree(tmp_path / "parts") == whole


@pytest.mark.slow
@pytest.mark.third_party_rng  # the runs are forked after they have seeded everything
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")
@pytest.mark.parametrize("verb", ["fit", "evaluate", "benchmark", "augment"])
def test_every_signal_at_random_moments_and_a_full_disk(verb, tmp_path):
    pytest.importorskip("matplotlib")
    _check(verb, tmp_path, times=2)


def _check(verb, tmp_path, times):
    spec = importlib.util.spec_from_file_location("stress_interrupts", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(["--times", str(times), "--verbs", verb, "--seed", "1", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "stress_interrupts.json").read_text()) == found
    for name in ("SIGINT", "SIGTERM", "SIGKILL"):
        row = found["signals"][verb][name]
        assert row["went_on"] == row["equal"] == row["tried"] == times
        assert row["said_so"] == row["ended_by_the_signal"]
        assert row["recomputed"] == row["half_written"] == row["left_over"] == 0
    row = found["full_disk"][verb]["counts"]
    assert row["ended_with_an_error"] == row["said_so"] == row["went_on"] == row["equal"] == row["tried"]
    assert row["half_written"] == 0
