import io
import json
import shutil
import signal
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from matrix_case import CLEAN, codes_of, matrix_of, outcomes_of, store, stored
from rich.console import Console
from safetensors.torch import load_file

from robustsigma import FGSM, GaussianNoise, Identity
from robustsigma.data import Baggage
from robustsigma.data.dataset_spec import ArrayDataset
from robustsigma.evaluation import Checks, Evaluation, Retraining, Sweep, Training, run_study
from robustsigma.evaluation._held_out import HeldOut, held_out
from robustsigma.evaluation.flags import run_flags
from robustsigma.evaluation.noise_sweep import SweepRun, best_of, sweep_noise
from robustsigma.evaluation.plan import Regime
from robustsigma.evaluation.resolve_settings import resolve_settings
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.training import TrainingProgress
from robustsigma.models import Architecture
from robustsigma.runs.blocks import Blocks

SOURCE = Baggage(size=16, train=48, val=20, test=16)
STDS = (0.3, 0.05)
SETTINGS = Evaluation(
    dataset=SOURCE,
    architecture=Architecture("small_cnn", {"width": 4}),
    training=Training(epochs=2, batch_size=16, lr=0.01),
    retraining=Retraining(
        retrain={"clean": Identity(), "gaussian": GaussianNoise(0.1)},
        on_the_fly={"gaussian": GaussianNoise(0.2), "fgsm": FGSM(0.03)},
        samples=12,
        epochs=1,
    ),
    conditions={"clean": Identity(), "gaussian": GaussianNoise(0.15), "fgsm": FGSM(0.03)},
    checks=Checks(images=0),
    sweep=Sweep(STDS, images=14),
    test_images=12,
)
COLUMNS = ("clean", "gaussian", "fgsm/adaptive")
SWEPT = (("retrain", "gaussian"), ("on_the_fly", "gaussian"))
TRIALS = [f"gaussian/{protocol}/{std}" for protocol, _ in SWEPT for std in STDS]


@dataclass(frozen=True)
class Sealed(Baggage):
    """Scans whose test images nobody may ask for."""

    def split(self, split):
        assert split != "test", "the sweep asked for test images"
        return super().split(split)


@dataclass(frozen=True)
class Unvalidated(Sealed):
    """The same without a validation split."""

    def split(self, split):
        found = super().split(split)
        return found if split == "train" else ArrayDataset(found.images[:0], found.labels[:0])


def _quiet():
    return Console(file=io.StringIO())


def _untimed(entries):
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in entry["rows"]] for entry in entries]
    return [{**entry, "rows": of} for entry, of in zip(entries, rows, strict=True)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder of a finished sweep that was sealed from the test images, and what it found."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    return out, sweep_noise(replace(SETTINGS, dataset=Sealed(16, 48, 20, 16)), out, _quiet())


@pytest.fixture
def calls(monkeypatch):
    """Record every training and test."""
    found, train, add = [], RobustnessRun._train, Blocks.add

    def watched_train(self, seed, regime, step):
        found.append(("train", regime.id.replace("/", ".")))
        train(self, seed, regime, step)

    def watched_add(self, start, rows):
        if "outcomes" in self.path.parts:
            found.append(("test", self.path.stem))
        add(self, start, rows)

    monkeypatch.setattr(RobustnessRun, "_train", watched_train)
    monkeypatch.setattr(Blocks, "add", watched_add)
    return found


def _copy(done, tmp_path):
    """Return a copy of the finished sweep, for the same scans unsealed."""
    out = shutil.copytree(done[0], tmp_path / "run")
    path = out / "sweep" / "settings.json"
    path.write_text(path.read_text("utf-8").replace('"Sealed"', '"Baggage"'), "utf-8")
    return out


def _outcomes(out, trial, column, seed=0):
    return stored(out / "sweep", seed, trial, column)


def test_every_std_is_evaluated_on_the_same_validation_images(done):
    """That no test image was seen, the source itself asserts."""
    out, _ = done
    held, val = HeldOut(SOURCE, "val", 14), SOURCE.split("val")
    indices = held.indices(len(val))
    assert len(set(indices)) == 14
    assert torch.equal(held.split("test").images, val.images[indices])
    assert held.split("train") is SOURCE.split("train")
    for trial in TRIALS:
        for column in COLUMNS:
            np.testing.assert_array_equal(_outcomes(out, trial, column).labels, val.labels[indices].numpy())


def test_the_tables_are_those_of_the_stored_outcomes(done, tmp_path):
    """Of made-up ones, as trainings of so few steps hardly differ: the larger std is better in retraining alone."""
    out = _copy(done, tmp_path)
    for protocol, name in SWEPT:
        for std, rights in zip(STDS, [(12, 9, 6), (8, 6, 4)][:: 1 if protocol == "retrain" else -1], strict=True):
            found = dict(zip(COLUMNS, (outcomes_of(right, 14) for right in rights), strict=True))
            store(out / "sweep", 0, f"{name}/{protocol}/{std}", found)
    found = sweep_noise(SETTINGS, out, _quiet())
    assert [entry["best"] for entry in found.entries] == list(STDS)
    assert json.loads((out / "sweep" / "table.json").read_text("utf-8")) == found.entries
    assert found.table == out / "sweep" / "table.json"
    assert [(entry["protocol"], entry["name"]) for entry in found.entries] == list(SWEPT)
    for entry in found.entries:
        assert (entry["images"], entry["held_out"], entry["seed"], entry["by"]) == (14, "val", 0, "mean")
        assert [column["id"] for column in entry["columns"]] == list(COLUMNS)
        assert [row["std"] for row in entry["rows"]] == sorted(STDS)
        for row in entry["rows"]:
            right = [_outcomes(out, f"{entry['regime']}/{row['std']}", column).correct for column in COLUMNS]
            means = [row["accuracy"][column]["mean"] for column in COLUMNS]
            np.testing.assert_allclose(means, np.mean(right, axis=1), atol=1e-12)
            assert row["score"]["mean"] == pytest.approx(np.mean(right), abs=1e-12)
            assert row["score"]["n"] == 14
        best = max(entry["rows"], key=lambda row: (row["score"]["mean"], -row["std"]))
        assert (best["std"], best["behind"]) == (entry["best"], None)
        (other,) = (row for row in entry["rows"] if row is not best)
        assert [best["best"], other["best"]] == [True, False]
        assert other["behind"]["mean"] == pytest.approx(other["score"]["mean"] - best["score"]["mean"], abs=1e-12)
        assert other["behind"]["mean"] == pytest.approx((18 - 27) / (3 * 14), abs=1e-12)


def test_the_best_takes_the_place_of_the_regimes_own(done):
    _, found = done
    for entry in found.entries:
        assert getattr(found.settings.retraining, entry["protocol"])["gaussian"] == GaussianNoise(entry["best"])
    assert found.settings.retraining.on_the_fly["fgsm"] == FGSM(0.03)
    assert found.settings.conditions == SETTINGS.conditions


def test_trials_differ_in_their_noise_alone(done):
    """Without noise in training each would be the same; with it, none is."""
    folder = done[0] / "sweep" / "models" / "seed0"
    weights = [load_file(folder / f"{trial.replace('/', '.')}.safetensors") for trial in TRIALS]
    flat = [torch.cat([tensor.flatten() for _, tensor in sorted(of.items())]) for of in weights]
    assert all(not torch.equal(a, b) for i, a in enumerate(flat) for b in flat[:i])


@pytest.mark.parametrize(
    ("right", "by", "best"),
    [
        ({0.1: [[1, 1, 0], [1, 0, 0]], 0.2: [[1, 1, 1], [1, 0, 0]]}, "mean", 0.2),
        ({0.2: [[1, 1, 0], [1, 0, 0]], 0.1: [[1, 0, 0], [1, 1, 0]]}, "mean", 0.1),  # a tie
        ({0.2: [[1, 1, 0], [1, 0, 0]], 0.1: [[0, 1, 0], [1, 0, 0]]}, "worst", 0.2),
        ({0.1: [[1, 1, 0], [1, 1, 0]], 0.2: [[1, 1, 1], [1, 0, 1]]}, "mean", 0.2),
        ({0.1: [[1, 1, 0], [1, 1, 0]], 0.2: [[1, 1, 1], [1, 0, 1]]}, "worst", 0.1),  # two images each: a tie
        ({0.3: [[1, 1, 1], [0, 0, 0]], 0.1: [[1, 0, 0], [1, 0, 0]], 0.2: [[1, 1, 0], [0, 0, 0]]}, "worst", 0.1),
    ],
)
def test_the_highest_is_best_and_the_smallest_wins_a_tie(right, by, best):
    tables = {std: np.array(table, float) for std, table in right.items()}
    assert best_of(tables, Sweep((0.1, 0.2), by=by)) == best


def test_a_finished_sweep_is_not_done_again(done, tmp_path, calls):
    out = _copy(done, tmp_path)
    assert _untimed(sweep_noise(SETTINGS, out, _quiet()).entries) == _untimed(done[1].entries)
    assert calls == []
    (out / "sweep" / "outcomes" / "seed0" / "gaussian.retrain.0.3.npz").unlink()
    (out / "sweep" / "models" / "seed0" / "gaussian.on_the_fly.0.05.safetensors").unlink()
    assert _untimed(sweep_noise(SETTINGS, out, _quiet()).entries) == _untimed(done[1].entries)
    assert calls == [("train", "gaussian.on_the_fly.0.05"), ("test", "gaussian.retrain.0.3")]


def test_a_std_can_be_added_and_another_criterion_taken(done, tmp_path, calls):
    out = _copy(done, tmp_path)
    found = sweep_noise(replace(SETTINGS, sweep=Sweep((*STDS, 0.1), images=14, by="worst")), out, _quiet())
    assert [name for _, name in calls] == ["gaussian.retrain.0.1", "gaussian.on_the_fly.0.1"] * 2
    for entry in found.entries:
        assert [row["std"] for row in entry["rows"]] == [0.05, 0.1, 0.3]
        for row in entry["rows"]:
            right = [_outcomes(out, f"{entry['regime']}/{row['std']}", column).correct for column in COLUMNS]
            assert row["score"]["mean"] == pytest.approx(np.min(right, axis=0).mean(), abs=1e-12)


def test_every_trial_has_samples_of_its_own_noise(tmp_path, monkeypatch):
    """A trial that broke off leaves parts behind, which are another's of other noise."""
    make, images, folders = RobustnessRun._samples, [], []

    def look(*args):
        added, totals = make(*args)
        images.append(added.tensors[0])
        return added, totals

    monkeypatch.setattr(RobustnessRun, "_samples", look)
    monkeypatch.setattr(Blocks, "remove", lambda self: folders.append(self.folder))
    sweep_noise(SETTINGS, tmp_path, _quiet())
    assert not torch.equal(*images)
    assert len({folder for folder in folders if "samples" in folder.parts and "retrain" in folder.name}) == len(STDS)


def test_an_interrupted_sweep_ends_as_an_uninterrupted_one(done, tmp_path, monkeypatch, calls):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:

        def interrupt(*_):
            if len(calls) == 3:  # the base model, a trial, and one in training
                raise KeyboardInterrupt

        patch.setattr(TrainingProgress, "on_train_batch_end", interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                sweep_noise(SETTINGS, tmp_path, _quiet())
        finally:
            signal.signal(signal.SIGINT, handler)
    assert not list((tmp_path / "sweep" / "models").rglob("gaussian.retrain.0.05*"))
    kept = list(calls[:2])
    calls.clear()
    assert _untimed(sweep_noise(SETTINGS, tmp_path, _quiet()).entries) == _untimed(done[1].entries)
    assert not set(kept) & set(calls)


def test_without_a_validation_split_training_images_are_held_out(tmp_path):
    source = Unvalidated(16, 48, 20, 16)
    train = source.split("train")
    held = held_out(source, 400)
    evaluated, rest = held.split("test"), held.split("train")
    assert (held.part, len(evaluated), len(rest)) == ("train", 9, 39)  # a fifth at most
    assert torch.equal(evaluated.masks, train.masks[held.indices(48)])
    rows = [{image.numpy().tobytes() for image in part.images} for part in (evaluated, rest, train)]
    assert rows[0].isdisjoint(rows[1])
    assert rows[0] | rows[1] == rows[2]
    found = sweep_noise(replace(SETTINGS, dataset=source, sweep=Sweep((0.05, 0.3))), tmp_path, _quiet())
    assert found.base is None, "a base model that saw fewer images is not that of the matrix"
    assert {(entry["held_out"], entry["images"]) for entry in found.entries} == {("train", 9)}


def test_too_few_images_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"dataset: expected images in 'train' to hold out.*got 4"):
        HeldOut(Unvalidated(16, 4, 1, 1), "train").split("test")


def test_datasets_that_are_no_arrays_are_held_out_as_well():
    class Files(Baggage):
        def split(self, split):
            inner = super().split(split)
            return torch.utils.data.TensorDataset(inner.images.float() / 255, inner.labels)

    found = HeldOut(Files(16, 10, 10, 1), "val", 3)
    assert len(found.split("test")) == 3
    assert torch.equal(found.split("test")[1][0], Files(16, 10, 10, 1).split("val")[found.indices(10)[1]][0])


@pytest.mark.slow
def test_the_evaluation_goes_on_from_the_sweep(done, tmp_path, calls, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    module = sys.modules[run_study.__module__]
    monkeypatch.setattr(module, "illustrate", lambda *_: ({}, {}))  # it would take long
    out = _copy(done, tmp_path)
    console = Console(file=io.StringIO(), width=200)
    page = run_study(SETTINGS, out, console=console).path.read_text("utf-8")
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert _untimed(results["sweep"]) == _untimed(done[1].entries)
    trained = [name for kind, name in calls if kind == "train"]
    assert trained == ["clean.retrain", "gaussian.retrain", "gaussian.on_the_fly", "fgsm.on_the_fly"]
    assert "std_not_swept" not in codes_of(results["flags"])
    best = {entry["regime"]: entry["best"] for entry in results["sweep"]}
    for regime in results["regimes"]:
        if regime["id"] in best:
            assert regime["settings"].endswith(f"GaussianNoise(std={best[regime['id']]}), the best std of 2")
            assert results["settings"]["retraining"][regime["protocol"]]["gaussian"]["std"] == best[regime["id"]]
    assert results["settings"]["sweep"]["stds"] == list(STDS)
    assert "Choice of the Gaussian noise for training" in page
    assert (out / "figures" / "sweep.png").is_file()
    assert "Std of the Gaussian noise for training" in console.file.getvalue()
    # The base model of the sweep is the one that the evaluation would have trained.
    alone = RobustnessRun(replace(SETTINGS, sweep=None), tmp_path / "alone", _quiet())
    alone.train(0, alone.regimes[0])
    first, second = (load_file(run / "models" / "seed0" / "base.safetensors") for run in (out, tmp_path / "alone"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    with pytest.raises(ValueError, match=r"out: expected .*retraining\.\w+\.gaussian\.std = .* \(the folder has"):
        run_study(replace(SETTINGS, sweep=None), out, console=_quiet())


@pytest.mark.parametrize(
    ("stds", "change", "named"),
    [
        ((0.1, 0.2), {}, None),  # it may end with what the folder has
        ((0.1, 0.2), {"training": replace(SETTINGS.training, lr=0.02)}, r"training\.lr = 0\.02"),
        ((0.1, 0.2), {"test_images": 5}, r"test_images = 5"),
        ((0.1, 0.3), {}, r"retraining\.on_the_fly\.gaussian\.std = 0\.1 \(the folder has 0\.2\)"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused_before_the_sweep(stds, change, named, tmp_path, monkeypatch):
    """It has no sweep, and trained on stds of 0.1 and 0.2."""
    RobustnessRun(replace(SETTINGS, sweep=None), tmp_path, _quiet())

    def start(*_):
        raise InterruptedError("the sweep starts")

    monkeypatch.setattr(SweepRun, "__init__", start)
    expected = (InterruptedError, "the sweep starts") if named is None else (ValueError, f"out: expected .*{named}")
    with pytest.raises(expected[0], match=expected[1]):
        sweep_noise(replace(SETTINGS, sweep=Sweep(stds), **change), tmp_path, _quiet())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training": replace(SETTINGS.training, epochs=3)}, r"training\.epochs = 3"),
        ({"sweep": Sweep(STDS, images=5)}, r"dataset\.images = 5"),
        ({"conditions": {"clean": Identity()}}, r"conditions"),
    ],
)
def test_a_sweep_of_other_settings_is_refused(done, change, named):
    with pytest.raises(ValueError, match=f"out: expected .*sweep.*{named}"):
        sweep_noise(replace(SETTINGS, dataset=Sealed(16, 48, 20, 16), **change), done[0], _quiet())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        sweep_noise(SETTINGS, tmp_path / "file", _quiet())


def test_without_a_sweep_nothing_is_done(tmp_path):
    settings = replace(SETTINGS, sweep=None)
    found = sweep_noise(settings, tmp_path / "run", _quiet())
    assert (found.settings, found.entries, found.table, found.base) == (resolve_settings(settings), [], None, None)
    assert not (tmp_path / "run").exists()


def _entry(regime, best, stds=(0.05, 0.1, 0.2)):
    return {"regime": regime, "best": best, "rows": [{"std": std} for std in stds]}


def test_flags_tell_of_noise_that_was_not_swept_or_is_best_at_an_end():
    first, second = (Regime(f"gaussian/{p}", "gaussian", p, GaussianNoise(0.1)) for p in ("retrain", "on_the_fly"))
    matrix = matrix_of([[100]] * 3, [CLEAN], [Regime("base", "base", "none", None), first, second], [0, 1])
    (flag,) = run_flags(matrix)
    assert flag["code"] == "std_not_swept"
    assert "(gaussian, retrained; gaussian, on the fly)" in flag["message"]  # as the report calls them
    assert "swept.yaml" in flag["message"]
    (flag,) = run_flags(matrix, [_entry("gaussian/retrain", 0.1)])
    assert flag["code"] == "std_not_swept"
    assert "(gaussian, on the fly)" in flag["message"]
    assert run_flags(matrix, [_entry("gaussian/retrain", 0.1), _entry("gaussian/on_the_fly", 0.1)]) == []
    found = run_flags(matrix, [_entry("gaussian/retrain", 0.2), _entry("gaussian/on_the_fly", 0.05)])
    assert codes_of(found) == ["std_at_edge", "std_at_edge"]
    assert found[0]["message"].startswith("gaussian, retrained: ")
    assert "largest" in found[0]["message"]
    assert "smallest" in found[1]["message"]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Sweep((0.1,)), "stds"),
        (lambda: Sweep((0.1, 0.1)), "stds"),
        (lambda: Sweep((0.1, 0)), "stds"),
        (lambda: Sweep((0.1, float("inf"))), "stds"),
        (lambda: Sweep(images=0), "images"),
        (lambda: Sweep(by="best"), "by"),
        (lambda: HeldOut(SOURCE, "test"), "part"),
        (lambda: HeldOut(SOURCE, "val", 0), "images"),
        (lambda: replace(SETTINGS, retraining=Retraining(retrain={"clean": Identity()})), "sweep"),
    ],
)
def test_bad_arguments(build, named):
    with pytest.raises(ValueError, match=rf"^{named}: expected .*got "):
        build()
