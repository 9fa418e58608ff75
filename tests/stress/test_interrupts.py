"""Runs that are interrupted, killed or out of disk space resume, and end with the results of an uninterrupted run."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from robustsigma.cli import main
from robustsigma.data import Baggage
from robustsigma.models import Architecture, ModelCard, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    architecture, source = Architecture("small_cnn", {"width": 4}), Baggage(size=16, train=20)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = architecture.build(3, 5)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return save_model(path, net, ModelCard(architecture, source.classes, source.shape))


def _augment(model, out):
    return main(["augment", "--dataset=Baggage", "--dataset.size=16", "--dataset.train=40", "--count=40",
                 f"--model={model}", "--perturbation=GaussianNoise", f"--out={out}"])  # fmt: skip


def _tree(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_augment_resumes_after_any_interrupted_write(error, model, tmp_path, monkeypatch, capsys):
    assert _augment(model, tmp_path / "whole") == 0
    whole, replace, writes = _tree(tmp_path / "whole"), Path.replace, []
    for begin in (0, 20):

        def cut_short(self, target, begin=begin):
            if len(writes) - begin == 20:  # in the second of the batches that it begins with
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
    assert len(writes) - len(set(writes)) < 16, "a finished batch was computed again"
    assert _augment(model, tmp_path / "parts") == 0
    assert _tree(tmp_path / "parts") == whole


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}  # with the exit status they must give
TIMES = 3  # interrupts by each signal


@pytest.mark.slow
@pytest.mark.third_party_rng  # the forked runs seed everything
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")
@pytest.mark.parametrize("name", ["fit", "evaluate", "benchmark", "augment"])
def test_runs_resume_after_signals_at_random_moments_and_after_a_full_disk(name, tmp_path, capfd):
    pytest.importorskip("matplotlib")
    import runs

    verb, draw = runs.verbs(tmp_path)[name], random.Random(name)
    assert main(verb.arguments(tmp_path / "warm")) == 0  # imports everything here, so that the forks need not
    child = runs.start(verb.arguments(tmp_path / "whole"), tmp_path / "whole")
    seconds = runs.cpu_seconds(child)
    assert runs.wait(child) == 0, (tmp_path / "whole.log").read_text()
    whole = verb.results(tmp_path / "whole")

    for number in range(TIMES):
        for sent, status in SIGNALS.items():
            out = tmp_path / f"{sent.name}{number}"
            settings = {"save_interval": 0.0 if number % 2 else 5.0}  # 5 seconds is close to the default
            child = runs.start(verb.arguments(out), out, **settings)
            runs.cpu_seconds(child, draw.uniform(0, seconds))
            os.kill(child, sent)
            assert runs.wait(child) in (0, status)
            before = verb.finished(out)
            assert not runs.incomplete(out)
            assert runs.wait(runs.start(verb.arguments(out), out, **settings)) == 0, out.with_suffix(".log").read_text()
            after = verb.finished(out)
            assert {unit: after[unit] for unit in before if ".parts/" not in unit} == {
                unit: value for unit, value in before.items() if ".parts/" not in unit
            }, "finished work was computed again"
            assert verb.results(out) == whole
            assert not list(out.rglob(".*.part"))

    out = tmp_path / "full"
    arguments = verb.arguments(out)
    if name == "fit":
        arguments.append("--data.num_workers=0")  # loading processes need shared memory, which has the same limit
    error = out.with_suffix(".error")
    status = runs.wait(runs.start(arguments, out, largest_file=draw.randint(2_000, 9_000)))
    assert status == 2, error.read_text() if error.is_file() else status
    last = out.with_suffix(".log").read_text().strip().splitlines()[-1]
    assert "could not write" in last
    assert "run the command again" in last
    assert not runs.incomplete(out)
    assert runs.wait(runs.start(arguments, out)) == 0
    assert verb.results(out) == whole
