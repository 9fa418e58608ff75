"""An evaluation that is interrupted again and again, in every kind of work, ends as one that never was."""

import io
import re
import shutil
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from robustsigma import FGSM, GaussianNoise, Identity
from robustsigma.data import Baggage
from robustsigma.evaluation import Checks, Evaluation, Retraining, Training, training
from robustsigma.evaluation.results import collect
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.lightning import LitClassifier
from robustsigma.models import Architecture
from robustsigma.runs.blocks import Blocks

SETTINGS = Evaluation(
    dataset=Baggage(size=16, train=40, val=10, test=30),
    architecture=Architecture("small_cnn", {"width": 4}),
    training=Training(epochs=3, batch_size=16, lr=0.01),
    retraining=Retraining(
        retrain={"noise": GaussianNoise(0.1)}, on_the_fly={"fgsm": FGSM(0.03)}, samples=20, epochs=2, batch_size=16
    ),
    conditions={"clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.03)},
    test_images=21,
    eval_batch_size=8,
    checks=Checks(images=0),
)


def _go_on(out):
    RobustnessRun(SETTINGS, out, Console(file=io.StringIO())).run()


def _files(out):
    """Return what a run left, but for the notes, which say how long it took."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not (path.suffix == ".json" and path.parent.name == "seed0")
    }


@pytest.fixture
def work(monkeypatch):
    """Record every batch that is trained on, tested or perturbed beforehand; and let some end in an interrupt."""
    monkeypatch.setattr(training, "SAVE_INTERVAL", 0.0)
    done, every = [], []

    def count():
        if every and len(done) % every[0] == 0:
            raise KeyboardInterrupt

    step, add = LitClassifier.training_step, Blocks.add

    def watched_step(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        done.append(("train", self.trainer.current_epoch, tuple(batch.indices.tolist())))
        count()
        return loss

    def watched_add(self, start, rows):
        add(self, start, rows)
        done.append(("samples" if "counts" in rows else "test", self.folder.name, start))
        count()

    monkeypatch.setattr(LitClassifier, "training_step", watched_step)
    monkeypatch.setattr(Blocks, "add", watched_add)
    return done, every


@pytest.mark.parametrize("every", [pytest.param(5, marks=pytest.mark.slow), 7])  # more than the batches of an epoch
def test_no_image_and_no_epoch_is_done_twice(every, work, tmp_path):
    done, interrupts = work
    _go_on(tmp_path / "whole")
    whole = Counter(done)
    assert max(whole.values()) <= 2, "the base model and a regime may see the same batch"
    assert {kind for kind, _, _ in whole} == {"train", "test", "samples"}
    done.clear()
    interrupts.append(every)
    handler, times = signal.getsignal(signal.SIGINT), 0
    while True:
        try:
            _go_on(tmp_path / "parts")
            break
        except KeyboardInterrupt:
            times += 1
            assert times < 40, "it does not go on"
        finally:
            signal.signal(signal.SIGINT, handler)
    assert times >= 4
    parts = Counter(done)
    for kind in ("test", "samples"):
        assert {key: n for key, n in parts.items() if key[0] == kind} == {
            key: n for key, n in whole.items() if key[0] == kind
        }
    # An epoch that was cut short is done again, from its first batch.
    assert sum(parts.values()) - sum(whole.values()) <= 3 * times
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


def test_a_run_that_was_killed_after_the_last_block_only_makes_one_file_of_them(work, tmp_path, monkeypatch):
    done, _ = work
    with monkeypatch.context() as patch:

        def killed(self):
            raise KeyboardInterrupt

        patch.setattr(Blocks, "finish", killed)
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(KeyboardInterrupt):
                _go_on(tmp_path)
        finally:
            signal.signal(signal.SIGINT, handler)
    assert len(list((tmp_path / "outcomes").rglob("*.parts"))) == 3
    first = [key for key in done if key[0] == "test"]
    assert len(first) == 3 * 3
    _go_on(tmp_path)
    assert [key for key in done if key[0] == "test"] == first
    assert not list(tmp_path.rglob("*.parts"))
    assert not list(tmp_path.rglob("*.ckpt"))


PLACES = {
    "outcomes/seed0/base.npz": r"delete it, and",
    "models/seed0/base.safetensors": r"delete it, and",
    "models/seed0/base.json": r"delete it, and",
    "checks/seed0/base.npz": r"delete it, and",
}


CHECKED = replace(SETTINGS, checks=Checks(images=4, queries=2, curves=False))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a finished run, which no test may write to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    RobustnessRun(CHECKED, out, Console(file=io.StringIO())).run()
    return out


@pytest.mark.parametrize("place", PLACES)
def test_what_an_error_says_of_a_damaged_file_helps(place, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    content = (out / place).read_bytes()
    (out / place).write_bytes(content[: len(content) // 2])
    if place.startswith("models"):  # else nobody reads it
        (out / "outcomes" / "seed0" / "noise.retrain.npz").unlink()

    def go_on():
        run = RobustnessRun(CHECKED, out, Console(file=io.StringIO()))
        run.run()
        return collect(run).cells

    with pytest.raises(
        ValueError, match=rf"{re.escape(place)}: expected an? .* that is whole, got .*; {PLACES[place]}"
    ):
        go_on()
    (out / place).unlink()
    before = RobustnessRun(CHECKED, whole, Console(file=io.StringIO()))
    assert go_on() == collect(before).cells
    if not place.endswith(".json"):
        assert (out / place).read_bytes() == content


def _diverge(model, *_):
    with torch.no_grad():
        next(model.classifier.net.parameters()).fill_(torch.nan)


@pytest.mark.parametrize(("regime", "rate"), [("base", "training"), ("noise/retrain", "retraining")])
def test_a_training_that_diverges_keeps_nothing_and_is_done_anew(regime, rate, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_INTERVAL", 0.0)  # every epoch is kept
    run = RobustnessRun(SETTINGS, tmp_path, Console(file=io.StringIO()))
    chosen = next(each for each in run.regimes if each.id == regime)
    if regime != "base":
        run.train(0, run.regimes[0])
    before = _files(tmp_path)
    expected = (
        rf"^training of {regime} \(seed 0\): expected finite weights, got NaN or infinity in \S+: it diverged; .*"
    )
    with monkeypatch.context() as patch:
        patch.setattr(LitClassifier, "on_train_batch_end", _diverge)
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"{expected} {rate}\.lr"):
                run.train(0, chosen)
            assert _files(tmp_path) == before
            assert not run.store.has_model(0, regime)
    run.train(0, chosen)
    assert run.store.has_model(0, regime)
    run.model(0, regime)  # it can be read
