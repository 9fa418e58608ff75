import io
import json
import random
import re
import shutil
import signal
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from matrix_case import stored
from rich.console import Console
from safetensors.torch import load_file

from robustsigma import FGSM, GaussianNoise, Identity, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.data.loading import load_batch
from robustsigma.engine import noise
from robustsigma.evaluation import Checks, Evaluation, Retraining, RobustnessReport, Training, run_study
from robustsigma.evaluation.block_evaluation import BlockEvaluation
from robustsigma.evaluation.illustrations import default_attributors
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import Condition
from robustsigma.evaluation.run import RobustnessRun
from robustsigma.evaluation.training import TrainingProgress
from robustsigma.models import Architecture, load_model
from robustsigma.runs.blocks import Blocks
from robustsigma.runs.files import read_arrays

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

WALK = SigmaSample(Sigma(objective="logit", alpha=0.01, beta=0.1, paths=1, max_steps=3))
CONDITIONS = {"clean": Identity(), "gaussian": GaussianNoise(0.1), "fgsm": FGSM(0.03), "sigma": WALK}
SETTINGS = Evaluation(
    dataset=Baggage(size=16, train=60, val=10, test=30),
    architecture=Architecture("small_cnn", {"width": 4}),
    training=Training(epochs=2, batch_size=16, lr=0.01),
    retraining=Retraining(
        retrain={"clean": Identity(), "sigma": WALK}, on_the_fly={"fgsm": FGSM(0.03)}, samples=20, epochs=1
    ),
    conditions=CONDITIONS,
    test_images=24,
    checks=Checks(images=12, queries=5),
)
REGIMES = ("base", "clean/retrain", "sigma/retrain", "fgsm/on_the_fly")
ATTACKS = ("fgsm", "sigma")
WORST = "worst/all"
COLUMNS = ("clean", "gaussian", "fgsm/adaptive", "sigma/adaptive", "fgsm/transfer", "sigma/transfer")


def _generators():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def _evaluate(settings, out):
    report = run_study(settings, out, console=Console(file=io.StringIO()))
    assert isinstance(report, RobustnessReport)
    assert report.path == out / "report.html"
    assert report.to_dict() == json.loads((out / "results.json").read_text("utf-8"))
    assert set(report.arrays) == set(read_arrays(out / "arrays.npz")), "those that `save` draws"
    return report.to_dict()


def _go_on(settings, out):
    RobustnessRun(settings, out, Console(file=io.StringIO())).run()


def _read(out, regime, column, seed=0):
    return stored(out, seed, regime, column)


def _same_outcomes(first, second):
    for field in fields(Outcomes):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


def _numbers(results):
    """Return what a second run must give again: all but how long it took, and when."""
    kept = {key: value for key, value in results.items() if key != "run"}
    kept["regimes"] = [{k: v for k, v in regime.items() if k != "seconds"} for regime in kept["regimes"]]
    kept["augmentation"] = [{k: v for k, v in entry.items() if k != "seconds"} for entry in kept["augmentation"]]
    return kept


def _names(calls):
    return [(kind, regime) for kind, _, regime in calls]


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """Return the folder of a finished evaluation, which no test may write to, its results, and the generators."""
    out, before = tmp_path_factory.mktemp("evaluation") / "run", _generators()
    results = _evaluate(SETTINGS, out)
    return out, results, (before, _generators())


@pytest.fixture
def calls(monkeypatch):
    """Record every training and test."""
    found, train, add, check = [], RobustnessRun._train, Blocks.add, BlockEvaluation._check

    def watched_train(self, seed, regime, step):
        found.append(("train", seed, regime.id.replace("/", ".")))
        train(self, seed, regime, step)

    def watched_add(self, start, rows):
        if "outcomes" in self.path.parts:
            found.append(("test", int(self.path.parent.name[4:]), self.path.stem))
        add(self, start, rows)

    def watched_check(self, name, *rest):
        found.append(("check", int(name[4]), name.partition("/")[2]))
        return check(self, name, *rest)

    monkeypatch.setattr(BlockEvaluation, "_check", watched_check)
    monkeypatch.setattr(RobustnessRun, "_train", watched_train)
    monkeypatch.setattr(Blocks, "add", watched_add)
    return found


def test_the_folder_holds_what_is_promised(done):
    out, results, _ = done
    assert "<html" in (out / "report.html").read_text("utf-8")
    assert results["schema"] == 1
    assert list((out / "figures").iterdir())
    with np.load(out / "arrays.npz", allow_pickle=False) as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
        assert arrays.files
    assert [regime["id"] for regime in results["regimes"]] == list(REGIMES)
    assert [column["id"] for column in results["conditions"]] == [*COLUMNS, WORST]
    assert results["dataset"]["test"] == 24
    assert {(cell["regime"], cell["condition"]) for cell in results["cells"]} == {
        (r, c) for r in REGIMES for c in (*COLUMNS, WORST)
    }
    assert {entry["regime"] for entry in results["networks"]} == set(REGIMES)
    assert {(e["regime"], e["condition"]) for e in results["checks"]} == {
        (r, f"{a}/adaptive") for r in REGIMES for a in ATTACKS
    }
    assert {(e["regime"], e["condition"]) for e in results["curves"]} == {(r, "fgsm/adaptive") for r in REGIMES}


def test_flags_of_the_run_see_its_size_and_its_training_samples(done):
    _, results, _ = done
    codes = [flag["code"] for flag in results["flags"]]
    (share,) = (e["converged"] for e in results["augmentation"] if e["regime"] == "sigma/retrain")
    assert share < 0.95
    assert {"few_images_in_all", "unconverged_training"} <= set(codes)


def test_trainings_on_one_step_are_watched(done):
    out, _, _ = done
    looks = {}
    for regime in REGIMES:
        (notes,) = (out / "models" / "seed0").rglob(f"{regime.replace('/', '.')}.json")
        looks[regime] = json.loads(notes.read_text())["overfitting"]
    assert [regime for regime in REGIMES if looks[regime]] == ["fgsm/on_the_fly"]
    (look,) = looks["fgsm/on_the_fly"]  # one epoch
    assert 0 <= look["probe"] <= 1
    assert not look["triggered"]


def test_worst_cases_are_the_means_of_each_images_minimum(done):
    out, results, _ = done
    for cell in results["cells"]:
        if cell["condition"] == WORST:
            each = [_read(out, cell["regime"], f"{attack}/adaptive").correct for attack in ATTACKS]
            assert cell["accuracy"]["mean"] == pytest.approx(np.minimum(*each).mean(), abs=1e-12)


def test_conditions_have_a_threat_model_and_every_parameter(done):
    found = {column["id"]: column for column in done[1]["conditions"]}
    assert found["fgsm/adaptive"]["threat"] == {
        "norm": "L\u221e", "eps": 0.03, "knowledge": "weights of the model under test", "goal": "any wrong class"
    }  # fmt: skip
    assert found["fgsm/transfer"]["threat"]["knowledge"] == "weights of the base model alone"
    assert found["sigma/adaptive"]["threat"]["norm"] == "unbounded"
    assert found["sigma/adaptive"]["parameters"]["sigma"]["max_steps"] == 3
    assert found["gaussian"]["parameters"] == {"attack": "GaussianNoise", "std": 0.1}
    assert found[WORST]["members"] == ["fgsm/adaptive", "sigma/adaptive"]


def test_the_confidence_of_the_answer_is_kept(done):
    for regime in REGIMES:
        found = _read(done[0], regime, "fgsm/adaptive")
        right = found.correct > 0
        np.testing.assert_allclose(found.max_confidence[right], found.confidences[right], atol=1e-6)
        assert (found.max_confidence[~right] >= found.confidences[~right]).all()


def test_evaluate_leaves_the_global_generators_alone(done):
    before, after = done[2]
    assert before == after


def test_cells_are_the_means_of_the_stored_outcomes(done):
    out, results, _ = done
    for cell in results["cells"]:
        if cell["condition"] == WORST:
            continue
        found = _read(out, cell["regime"], cell["condition"])
        assert cell["accuracy"]["mean"] == pytest.approx((found.predictions == found.labels).mean(), abs=1e-12)
        assert cell["accuracy"]["low"] <= cell["accuracy"]["mean"] <= cell["accuracy"]["high"]
        assert cell["n"] == len(found.indices) == 24
        assert cell["confidence"]["mean"] == pytest.approx(found.confidences.mean(dtype=np.float64), abs=1e-6)
        assert cell["quality"]["rmse"]["mean"] == pytest.approx(found.rmse.mean(dtype=np.float64), abs=1e-6)
        if cell["condition"].startswith("sigma/"):
            assert found.attempted.all()
            assert cell["steps"] == pytest.approx(found.steps.mean())
            assert cell["converged"] == pytest.approx(found.converged.mean())
        else:
            assert cell["steps"] is None
            assert cell["converged"] is None


def test_differences_are_those_of_the_cells(done):
    out, results, _ = done
    assert len(results["differences"]) == 5 * (
        len(COLUMNS) + 1
    )  # three regimes against the base, two against the control
    for entry in results["differences"]:
        if entry["condition"] == WORST:
            continue
        first = _read(out, entry["regime"], entry["condition"])
        second = _read(out, entry["against"], entry["condition"])
        np.testing.assert_array_equal(first.indices, second.indices)
        assert entry["mean"] == pytest.approx((first.correct - second.correct).mean(), abs=1e-12)


@pytest.mark.parametrize("attack", ATTACKS)
def test_transfer_to_the_base_model_is_the_attack_on_it(done, attack):
    _same_outcomes(_read(done[0], "base", f"{attack}/adaptive"), _read(done[0], "base", f"{attack}/transfer"))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.third_party_rng  # weights, before they are loaded
def test_transfer_cells_were_tested_on_samples_against_the_base_model(done, attack):
    out = done[0]
    base = _read(out, "base", f"{attack}/adaptive")
    images, labels = load_batch(SETTINGS.dataset.split("test"), base.indices.tolist())
    models = {
        name: load_model(out / "models" / "seed0" / f"{name.replace('/', '.')}.safetensors")[0] for name in REGIMES
    }
    seeds = noise.image_seeds(0, "test", f"{attack}/adaptive", 0, torch.from_numpy(base.indices))
    samples = CONDITIONS[attack](models["base"], images, labels, seed=seeds)
    np.testing.assert_allclose((samples - images).abs().flatten(1).amax(1).numpy(), base.linf, atol=1e-6)
    for regime, classifier in models.items():
        with torch.no_grad():
            logits = classifier.eval().logits(samples)
        found = _read(out, regime, f"{attack}/transfer")
        np.testing.assert_array_equal(found.labels, labels.numpy())
        np.testing.assert_array_equal(found.predictions, logits.argmax(1).numpy())
        probabilities = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        np.testing.assert_allclose(found.confidences, probabilities.numpy(), atol=1e-5)
        for name in ("attempted", "converged", "steps", "rmse", "linf", "ssim"):
            np.testing.assert_array_equal(getattr(found, name), getattr(base, name), err_msg=name)


def test_adaptive_cells_were_made_against_the_tested_model(done):
    changed = [_read(done[0], r, "fgsm/adaptive").confidences for r in REGIMES[1:]]
    moved = [_read(done[0], r, "fgsm/transfer").confidences for r in REGIMES[1:]]
    assert all((a != b).any() for a, b in zip(changed, moved, strict=True))


def test_a_second_run_does_nothing_again(done, tmp_path, monkeypatch):
    def refuse(self, *_):
        raise AssertionError("this was done before")

    monkeypatch.setattr(RobustnessRun, "_train", refuse)
    monkeypatch.setattr(Blocks, "add", refuse)
    monkeypatch.setattr(BlockEvaluation, "_check", refuse)
    shutil.copytree(done[0], tmp_path / "run")
    told = io.StringIO()
    report = run_study(SETTINGS, tmp_path / "run", console=Console(file=told, width=100))
    assert _numbers(report.to_dict()) == _numbers(done[1])
    jobs = [line for line in told.getvalue().splitlines() if re.match(r" *\d+/\d+ ", line)]
    assert len(jobs) == 2 * len(REGIMES) + 2
    assert re.fullmatch(r"1/1  pictures for the report  \d+\.\d s", jobs[-1]), "the last minutes are not silent"


def test_pictures_take_the_walk_of_the_column_or_a_short_one():
    columns = [Condition(name, name, "adaptive", perturbation) for name, perturbation in CONDITIONS.items()]
    assert default_attributors(columns, 28 * 28)["SIGMA"] == replace(WALK.sigma, paths=7)
    short = default_attributors(columns[:3], 28 * 28)["SIGMA"]
    assert short == replace(SigmaSample().sigma, paths=7)
    assert short.max_steps <= 60
    assert default_attributors(columns, 224 * 224)["SIGMA"] == replace(WALK.sigma, paths=1)
    large = default_attributors(columns[:3], 224 * 224)["SIGMA"]
    assert (large.paths, large.max_steps) == (1, 24), "pictures of photographs are not worth minutes either"


def test_results_are_written_before_the_pictures(done, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = shutil.copytree(done[0], tmp_path / "run")
    (out / "results.json").unlink()
    monkeypatch.setattr(sys.modules[run_study.__module__], "illustrate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_study(SETTINGS, out, console=Console(file=io.StringIO()))
    assert json.loads((out / "results.json").read_text("utf-8"))["cells"] == done[1]["cells"]


def test_only_what_is_missing_is_done_again(done, tmp_path, calls):
    out = shutil.copytree(done[0], tmp_path / "run")
    (out / "outcomes" / "seed0" / "clean.retrain.npz").unlink()
    (out / "models" / "seed0" / "sigma.retrain.safetensors").unlink()
    _go_on(SETTINGS, out)
    assert _names(calls) == [("train", "sigma.retrain"), ("test", "clean.retrain")]
    for regime in REGIMES:
        for column in COLUMNS:
            _same_outcomes(_read(out, regime, column), _read(done[0], regime, column))
        name = f"models/seed0/{regime.replace('/', '.')}.safetensors"
        before, after = load_file(done[0] / name), load_file(out / name)
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.slow
def test_checks_may_change_and_are_made_again_alone(done, tmp_path, calls):
    out = shutil.copytree(done[0], tmp_path / "run")
    (out / "checks" / "seed0" / "base.npz").unlink()
    _go_on(SETTINGS, out)
    assert _names(calls) == [("check", "base")]
    with np.load(out / "checks" / "seed0" / "base.npz") as again, np.load(done[0] / "checks/seed0/base.npz") as first:
        assert set(again.files) == set(first.files)
        for name in first.files:
            np.testing.assert_array_equal(again[name], first[name])
    calls.clear()
    found = _evaluate(replace(SETTINGS, checks=Checks(images=6, queries=0, noise=False, curves=False)), out)
    assert _names(calls) == [("check", regime.replace("/", ".")) for regime in REGIMES]
    assert {entry["n"] for entry in found["checks"]} == {6}
    assert not any("noise" in entry or "search" in entry for entry in found["checks"])
    assert found["curves"] == []
    calls.clear()
    found = _evaluate(replace(SETTINGS, checks=Checks(images=0)), out)
    assert _names(calls) == [("check", regime.replace("/", ".")) for regime in REGIMES], "the networks are looked at"
    assert (len(found["networks"]), found["checks"]) == (len(REGIMES), [])


def test_an_interrupted_run_ends_as_an_uninterrupted_one(done, tmp_path, monkeypatch, calls):
    batches, handler = [], signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:

        def interrupt(self, trainer, *_):
            batches.append(trainer.global_step)
            if len(calls) == 2:  # the base model was trained
                raise KeyboardInterrupt

        patch.setattr(TrainingProgress, "on_train_batch_end", interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                _go_on(SETTINGS, tmp_path)
            assert signal.getsignal(signal.SIGINT) is handler, "another interrupt would be ignored"
        finally:
            signal.signal(signal.SIGINT, handler)
    assert calls[-1] == ("train", 0, "clean.retrain")
    assert not list((tmp_path / "models").rglob("clean*"))
    calls.clear()
    _go_on(SETTINGS, tmp_path)
    assert ("train", 0, "base") not in calls
    for regime in REGIMES:
        for column in COLUMNS:
            _same_outcomes(_read(tmp_path, regime, column), _read(done[0], regime, column))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training": replace(SETTINGS.training, lr=0.02)}, r"training\.lr = 0\.02 \(the folder has 0\.01\)"),
        ({"test_images": 5}, "test_images = 5"),
        ({"dataset": replace(SETTINGS.dataset, train=61)}, r"dataset\.train = 61"),
        ({"conditions": {**CONDITIONS, "fgsm": FGSM(0.02)}}, r"conditions\.fgsm\.eps = 0\.02"),
    ],
)
def test_a_folder_of_other_settings_is_refused(done, change, named):
    with pytest.raises(ValueError, match=f"out: expected .*{named}"):
        _go_on(replace(SETTINGS, **change), done[0])


@pytest.mark.slow
def test_a_seed_can_be_added(done, tmp_path, calls):
    out = shutil.copytree(done[0], tmp_path / "run")
    results = _evaluate(replace(SETTINGS, seeds=(0, 1)), out)
    assert {seed for _, seed, _ in calls} == {1}
    assert results["seeds"] == [0, 1]
    assert len(results["per_seed"]) == 2 * len(REGIMES) * (len(COLUMNS) + 1)
    for regime in REGIMES:
        _same_outcomes(_read(out, regime, "fgsm/adaptive"), _read(done[0], regime, "fgsm/adaptive"))
        first, second = (_read(out, regime, "gaussian", seed) for seed in (0, 1))
        np.testing.assert_array_equal(first.rmse, second.rmse)  # the same noise on the same images
        assert (first.confidences != second.confidences).any()
    cell = results["cells"][0]
    both = [_read(out, cell["regime"], cell["condition"], seed).correct.mean() for seed in (0, 1)]
    assert cell["accuracy"]["mean"] == pytest.approx(np.mean(both), abs=1e-12)
    assert "1 seed" not in {flag["code"] for flag in results["flags"]}


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: replace(SETTINGS, seeds=()), "seeds"),
        (lambda: replace(SETTINGS, seeds=(0, 0)), "seeds"),
        (lambda: replace(SETTINGS, seeds=(-1,)), "seeds"),
        (lambda: replace(SETTINGS, seeds=(0.5,)), "seeds"),
        (lambda: replace(SETTINGS, conditions={"fgsm": FGSM(0.1)}), "conditions"),
        (
            lambda: replace(SETTINGS, conditions={"clean": Identity(), "../up": FGSM(0.1)}),
            "name of a condition or regime",
        ),
        (lambda: replace(SETTINGS, conditions={"": Identity()}), "name of a condition or regime"),
        (lambda: replace(SETTINGS, retraining=Retraining(retrain={"a/b": FGSM(0.1)})), "name of a condition or regime"),
        (
            lambda: replace(SETTINGS, conditions={"fgsm": FGSM(0.1), "clean": Identity(), "FGSM": FGSM(0.2)}),
            "conditions",
        ),
        (
            lambda: replace(SETTINGS, retraining=Retraining(on_the_fly={"A": FGSM(0.1), "a": FGSM(0.2)})),
            r"retraining\.on_the_fly",
        ),
        (lambda: replace(SETTINGS, test_images=0), "test_images"),
        (lambda: replace(SETTINGS, eval_batch_size=0), "eval_batch_size"),
        (lambda: replace(SETTINGS, num_workers=-1), "num_workers"),
        (lambda: Checks(images=-1), "images"),
        (lambda: Checks(queries=0.5), "queries"),
        (lambda: Training(epochs=-1), "epochs"),
        (lambda: Retraining(epochs=0), "epochs"),
        (lambda: replace(SETTINGS, training=Training(epochs=0)), r"training\.epochs"),
        (lambda: Training(batch_size=1.5), "batch_size"),
        (lambda: Training(lr=0), "lr"),
        (lambda: Training(weight_decay=-1), "weight_decay"),
        (lambda: Retraining(samples=0), "samples"),
        (lambda: Retraining(share=0), "share"),
        (lambda: Retraining(share=1.5), "share"),
        (lambda: Retraining(lr=float("nan")), "lr"),
    ],
)
def test_bad_arguments(build, named):
    with pytest.raises(ValueError, match=rf"^{named}: expected .*got "):
        build()
