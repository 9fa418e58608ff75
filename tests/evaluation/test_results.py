import dataclasses
import re

import cases
import numpy as np
import pytest
import torch
from matrix_case import (
    ATTACK,
    BASE,
    CLEAN,
    COLUMNS,
    CONTROL,
    FGSM_RUN,
    MOVED,
    NOISE,
    PGD_COLUMN,
    SIGMA,
    WALK,
    WALK_MOVED,
    N,
    codes_of,
    matrix_of,
    outcomes_of,
    store,
    stored,
)

from robustsigma import FGSM, PGD, AutoAttack, GaussianNoise, SigmaSample, Square, evaluate
from robustsigma.engine.metrics import Interval, holm, paired_difference
from robustsigma.engine.perturbations import SampleCache
from robustsigma.evaluation import Checks
from robustsigma.evaluation.findings import findings, verdict
from robustsigma.evaluation.flags import cell_flags, run_flags
from robustsigma.evaluation.plan import Condition, Regime
from robustsigma.evaluation.results import augmentation, cell_entries, differences, overfitting_events, per_seed
from robustsigma.report import text

CACHED = Regime("cached/on_the_fly", "cached", "on_the_fly", SigmaSample(cache=SampleCache()))


@pytest.mark.parametrize(
    ("attempted", "converged", "flagged"),
    [
        (0, 0, False),
        (100, 100, False),
        (100, 95, False),
        (100, 94, True),
        (200, 0, True),
        (20, 19, False),
        (20, 18, True),
    ],
)
def test_unconverged_is_more_than_a_twentieth_of_the_searches(attempted, converged, flagged):
    outcomes = outcomes_of(0, attempted=attempted, converged=converged)
    matrix = matrix_of([[150, outcomes, outcomes]], [CLEAN, WALK, WALK_MOVED])
    for column in (WALK, WALK_MOVED):
        assert codes_of(cell_flags(matrix, BASE, column)) == (["unconverged"] if flagged else [])
    entry = cell_entries(matrix)[1]
    assert entry["converged"] == (converged / attempted if attempted else None)
    assert entry["steps"] == (5 if attempted else None)
    assert codes_of(entry["flags"]) == (["unconverged"] if flagged else [])


@pytest.mark.parametrize(("attacked", "flagged"), [(20, False), (100, False), (101, False), (130, True), (200, True)])
def test_a_label_leak_is_an_attack_that_surely_helps(attacked, flagged):
    matrix = matrix_of([[100, 199, attacked, attacked]])
    for column in (ATTACK, MOVED):
        assert codes_of(cell_flags(matrix, BASE, column)) == (["label_leak"] if flagged else [])
    assert cell_flags(matrix, BASE, NOISE) == []  # noise is no attack
    assert cell_flags(matrix, BASE, CLEAN) == []


@pytest.mark.parametrize(
    ("adaptive", "moved", "flagged"), [(50, 90, False), (90, 90, False), (91, 90, False), (110, 60, True)]
)
def test_gradients_are_masked_where_samples_of_another_model_surely_work_better(adaptive, moved, flagged):
    matrix = matrix_of([[150, 150, 90, 30], [150, 150, adaptive, moved]], regimes=(BASE, SIGMA))
    assert codes_of(cell_flags(matrix, SIGMA, ATTACK)) == (["masked"] if flagged else [])
    for regime, column in ((SIGMA, MOVED), (SIGMA, CLEAN), (BASE, ATTACK)):
        assert cell_flags(matrix, regime, column) == []


def test_differences_are_over_the_same_images():
    # Both answer half; paired, the interval of equal answers is a point and that of opposite ones is wide.
    same = matrix_of([[100], [outcomes_of(100)]], [CLEAN], (BASE, SIGMA))
    opposite = matrix_of([[100], [outcomes_of(100, shift=100)]], [CLEAN], (BASE, SIGMA))
    (one,), (other,) = differences(same), differences(opposite)
    assert (one["mean"], one["low"], one["high"], one["n"]) == (0, 0, 0, N)
    assert other["mean"] == 0
    assert other["low"] < -0.1 < 0.1 < other["high"]


def test_differences_are_against_the_base_and_the_control():
    matrix = matrix_of([[100, 80, 10, 10], [110, 80, 10, 10], [120, 90, 50, 30]], regimes=(BASE, CONTROL, SIGMA))
    found = {(e["regime"], e["against"], e["condition"]): e for e in differences(matrix)}
    pairs = [("clean/retrain", "base"), ("sigma/retrain", "base"), ("sigma/retrain", "clean/retrain")]
    assert set(found) == {(*pair, column.id) for pair in pairs for column in COLUMNS}
    entry = found["sigma/retrain", "clean/retrain", "fgsm/adaptive"]
    expected = paired_difference(np.arange(N) < 50, np.arange(N) < 10)
    parts = ("mean", "low", "high", "n", "p")
    assert {part: entry[part] for part in parts} == dataclasses.asdict(expected)
    family = [each for each in differences(matrix) if each["against"] == "clean/retrain"]
    corrected = holm([Interval(*(each[part] for part in parts)) for each in family])
    assert [each["p_holm"] for each in family] == corrected
    assert entry["mean"] == pytest.approx(0.2)


def test_cells_over_two_seeds():
    matrix = matrix_of([[100]], [CLEAN], seeds=(0, 3))
    matrix.cells["base", "clean"] = [outcomes_of(100), outcomes_of(160)]
    (entry,) = cell_entries(matrix)
    assert (entry["n"], entry["seeds"]) == (N, 2)
    assert entry["accuracy"]["mean"] == pytest.approx(0.65)
    assert entry["confidence"]["mean"] == pytest.approx(0.65 * 0.8 + 0.35 * 0.1, abs=1e-6)
    assert {name: part["mean"] for name, part in entry["quality"].items()} == pytest.approx(
        {"rmse": 0.1, "linf": 0.2, "ssim": 0.9}, abs=1e-6
    )
    # Each training errs by itself: by 0.3 and 0, not by |0.65 - 0.8|; few images of a resample never lower that.
    assert entry["calibration"]["mean"] == pytest.approx((0.3 + 0) / 2, abs=1e-6)
    assert [(e["seed"], e["accuracy"]) for e in per_seed(matrix)] == [(0, 0.5), (3, 0.8)]


@pytest.mark.parametrize(
    ("columns", "regimes", "seeds", "codes"),
    [
        ([CLEAN], [BASE], [0], ["1 seed"]),
        ([CLEAN], [BASE], [0, 1], []),
        ([CLEAN, ATTACK, MOVED], [BASE], [0, 1], ["single_step"]),
        ([CLEAN, ATTACK, Condition("pgd/adaptive", "pgd", "adaptive", PGD(0.1))], [BASE], [0, 1], []),
        ([CLEAN, ATTACK, Condition("aa/adaptive", "aa", "adaptive", AutoAttack(0.1))], [BASE], [0, 1], []),
        ([CLEAN, ATTACK, Condition("s/adaptive", "s", "adaptive", Square(0.1))], [BASE], [0, 1], ["single_step"]),
        ([CLEAN, NOISE], [BASE], [0, 1], []),
        ([CLEAN], [BASE, Regime("g/retrain", "g", "retrain", GaussianNoise(0.1))], [0, 1], ["std_not_swept"]),
    ],
)
def test_flags_of_the_run(columns, regimes, seeds, codes):
    matrix = matrix_of([[100] * len(columns)] * len(regimes), columns, regimes, seeds)
    assert codes_of(run_flags(matrix)) == codes


@pytest.mark.parametrize(("images", "flagged"), [(29, True), (30, False)])
def test_few_test_images_are_flagged(images, flagged):
    matrix = matrix_of([[outcomes_of(20, n=images)]], [CLEAN], seeds=(0, 1))
    assert codes_of(run_flags(matrix)) == (["few_images_in_all"] if flagged else [])
    assert all(f"Only {images} test images" in flag["message"] for flag in run_flags(matrix))


@pytest.mark.parametrize(
    ("shares", "flagged"), [((0.95, 0.95), False), ((0.9, 0.99), True), ((0.24, 0.24), True), ((None, None), False)]
)
def test_training_on_samples_that_did_not_converge_is_flagged(shares, flagged):
    seeds = (0, 1)
    matrix = matrix_of([[100], [100]], [CLEAN], (BASE, SIGMA), seeds)
    made = [{"regime": SIGMA.id, "seed": seed, "converged": share} for seed, share in zip(seeds, shares, strict=True)]
    found = run_flags(matrix, made=made)
    assert codes_of(found) == (["unconverged_training"] if flagged else [])
    assert all(f"SIGMA, retrained: {np.mean(shares):.1%} converged" in flag["message"] for flag in found)


def test_gaussian_noise_that_was_swept_is_not_flagged():
    swept = [Regime(f"g{i}/retrain", f"g{i}", "retrain", GaussianNoise(std)) for i, std in enumerate((0.05, 0.1, 0.2))]
    matrix = matrix_of([[100]] * 4, [CLEAN], [BASE, *swept], [0, 1])
    assert "std_not_swept" not in codes_of(run_flags(matrix))


def test_the_worst_case_is_taken_image_by_image():
    """Two attacks that fool 100 images each, none of them in common, leave none right; the lowest mean is a half."""
    columns = [CLEAN, ATTACK, PGD_COLUMN, WALK]
    matrix = matrix_of([[180, outcomes_of(100), outcomes_of(100, shift=100), outcomes_of(150)]], columns)
    assert matrix.worst == {
        "worst/L\u221e 0.1": ("fgsm/adaptive", "pgd/adaptive"),
        "worst/all": ("fgsm/adaptive", "pgd/adaptive", "sigma/adaptive"),
    }
    assert matrix.accuracy("base", "worst/L\u221e 0.1").mean == 0
    entries = {entry["condition"]: entry for entry in cell_entries(matrix)}
    assert entries["worst/L\u221e 0.1"]["accuracy"] == {
        "mean": 0, "low": 0, "high": pytest.approx(1 - 0.025 ** (1 / N)), "n": N,
    }  # fmt: skip
    half = matrix_of([[180, outcomes_of(100), outcomes_of(100, shift=50), outcomes_of(150)]], columns)
    assert half.accuracy("base", "worst/all").mean == pytest.approx(0.25)
    assert {entry["condition"] for entry in per_seed(half)} == {*(c.id for c in columns), *half.worst}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([CLEAN, ATTACK, MOVED], {}),
        ([CLEAN, ATTACK, WALK, MOVED], {"worst/all": ("fgsm/adaptive", "sigma/adaptive")}),
        ([CLEAN, ATTACK, PGD_COLUMN], {"worst/L\u221e 0.1": ("fgsm/adaptive", "pgd/adaptive")}),
    ],
)
def test_a_worst_case_is_over_two_attacks_or_more_and_told_once(columns, expected):
    assert matrix_of([[100] * len(columns)], columns).worst == expected


def test_worst_cases_are_compared_between_regimes():
    matrix = matrix_of([[180, 60, 50, 20], [180, 90, 90, 20]], [CLEAN, ATTACK, PGD_COLUMN, WALK], (BASE, SIGMA))
    (entry,) = [e for e in differences(matrix) if e["condition"] == "worst/L\u221e 0.1"]
    assert entry["mean"] == pytest.approx(0.2)


def test_a_single_step_that_surely_beats_many_is_masking():
    columns = [CLEAN, ATTACK, PGD_COLUMN]
    for single, many, flagged in ((60, 60, False), (60, 61, False), (60, 90, True), (90, 60, False)):
        matrix = matrix_of([[180, single, many]], columns)
        assert codes_of(cell_flags(matrix, BASE, PGD_COLUMN)) == (["masked"] if flagged else [])
        assert cell_flags(matrix, BASE, ATTACK) == []
    elsewhere = Condition("pgd/adaptive", "pgd", "adaptive", PGD(0.2))  # another ball: no comparison
    assert cell_flags(matrix_of([[180, 60, 90]], [CLEAN, ATTACK, elsewhere]), BASE, elsewhere) == []


def test_cells_have_a_calibration_error(tmp_path):
    store(tmp_path, 0, "base", {"clean": outcomes_of(100)})
    read = stored(tmp_path, 0, "base", "clean")
    assert cell_entries(matrix_of([[read]], [CLEAN]))[0]["calibration"]["mean"] == pytest.approx(0.3, abs=1e-6)


def test_augmentation_counts_what_was_made():
    nothing = {"samples": 0, "attempted": 0, "converged": 0, "steps": 0, "seconds": 0.0}
    walked = {"samples": 90, "attempted": 80, "converged": 60, "steps": 300, "seconds": 2.0}
    plain = {**nothing, "samples": 50, "seconds": 1.0}
    cached = {**walked, "requested": 200, "hits": 120, "expired": 20, "stale": 10, "ages": 180}
    matrix = matrix_of([[100]] * 4, [CLEAN], (BASE, SIGMA, FGSM_RUN, CACHED))
    made = {"base": nothing, "sigma/retrain": walked, "fgsm/on_the_fly": plain, CACHED.id: cached}
    entries = augmentation(matrix, {(regime, 0): {"augmentation": counts} for regime, counts in made.items()})
    assert entries == [
        {"regime": "sigma/retrain", "seed": 0, "samples": 90, "seconds": 2.0, "converged": 0.75, "steps": 3.8,
         "cache": None},
        {"regime": "fgsm/on_the_fly", "seed": 0, "samples": 50, "seconds": 1.0, "converged": None, "steps": None,
         "cache": None},
        {"regime": CACHED.id, "seed": 0, "samples": 90, "seconds": 2.0, "converged": 0.75, "steps": 3.8,
         "cache": {"hit_rate": 0.6, "mean_age": 1.5, "expired": 0.1, "stale": 0.05}},
    ]  # fmt: skip


def test_a_training_that_overfitted_is_flagged_where_gradients_are_followed():
    def check(epoch, probe, triggered=False):
        return {"epoch": epoch, "step": 5 * epoch, "probe": probe, "attack": 0.9, "triggered": triggered}

    noted = {
        0: {"overfitting": [check(0, 0.4), check(1, 0.5), check(2, 0.1, True), check(3, 0.05, True)]},
        1: {"overfitting": [check(0, 0.4), check(1, 0.41)]},
    }
    found = overfitting_events(noted)
    assert found == [(0, 2, 0.5, 0.1)]
    columns = [CLEAN, NOISE, ATTACK, MOVED, WALK]
    matrix = matrix_of([[100] * 5] * 2, columns, (BASE, FGSM_RUN))
    matrix.overfitting = {FGSM_RUN.id: found}
    told = {(r.id, c.id): codes_of(cell_flags(matrix, r, c)) for r in (BASE, FGSM_RUN) for c in columns}
    assert [cell for cell, codes in told.items() if "overfitted" in codes] == [(FGSM_RUN.id, ATTACK.id)]
    (flag,) = (flag for flag in cell_flags(matrix, FGSM_RUN, ATTACK) if flag["code"] == "overfitted")
    assert "seed 0: from 50% to 10% in epoch 2" in flag["message"]


def _told(sigma, control=None, fgsm=(100, 100, 100, 100), columns=COLUMNS):
    rows, regimes = [[160, 120, 20, 20]], [BASE]
    for row, regime in ((control, CONTROL), (sigma, SIGMA), (fgsm, FGSM_RUN)):
        if row is not None:
            rows.append(row)
            regimes.append(regime)
    matrix = matrix_of(rows, columns, regimes)
    return matrix, findings(matrix)


def test_the_first_finding_is_the_base_model():
    matrix, (first, *_) = _told((100, 100, 100, 100))
    assert first.startswith("The base model classifies 80.0% (")
    low, high = (100 * getattr(matrix.accuracy("base", "gaussian"), end) for end in ("low", "high"))
    assert f"60.0% ({low:.1f} to {high:.1f}) under Gaussian noise" in first
    assert "10.0% (" in first
    assert "under FGSM" in first
    assert first.endswith("chance is 33%.")
    assert "at once" not in first  # one attack is no worst case


def test_the_first_finding_has_the_worst_cases():
    rights = [180, outcomes_of(100), outcomes_of(100, shift=100), outcomes_of(150)]
    matrix = matrix_of([rights], [CLEAN, ATTACK, PGD_COLUMN, WALK])
    first = findings(matrix)[0]
    assert "0.0% (0.0 to 1.8) under all adaptive attacks within L\u221e 0.1 at once" in first
    assert "under all adaptive attacks at once" in first


@pytest.mark.parametrize("control", [None, (160, 120, 20, 20)])
def test_the_effect_of_sigma_is_told_with_its_sign_and_its_doubt(control):
    worse, better = 160 - 60, 20 + 60
    matrix, sentences = _told((worse, 121, better, 20), control)
    (line,) = [s for s in sentences if s.startswith("SIGMA retraining, compared with")]
    assert ("the clean control:" if control else "the base model:") in line
    against = "clean/retrain" if control else "base"
    clean, noise, attack = line.removesuffix(".").split(": ", 1)[1].split("; ")
    for part, column, mean in ((clean, CLEAN, -30), (noise, NOISE, 0.5), (attack, ATTACK, 30)):
        found = matrix.difference(("sigma/retrain", column.id), (against, column.id))
        assert f"{text.points(mean / 100)} points ({text.points(found.low)} to {text.points(found.high)})" in part
        assert ("not significant" in part) == (found.low <= 0 <= found.high)
    assert "not significant" in noise
    assert "not significant" not in clean + attack


def test_trainings_that_did_not_help_are_told_as_well():
    columns = [CLEAN, ATTACK, MOVED, WALK]
    _, sentences = _told((160, 20, 20, 20), columns=columns, fgsm=(160, 190, 90, 20))
    (line,) = [s for s in sentences if "trainings significantly" in s]
    assert line == (
        "1 of 2 trainings significantly improved accuracy under the perturbation used for training; "
        "the exception: SIGMA retraining 0.0 points (0.0 to 0.0)."
    )
    _, sentences = _told((160, 20, 20, 80), columns=columns, fgsm=(160, 190, 90, 20))
    assert "2 of 2 trainings significantly improved accuracy under the perturbation used for training." in sentences


@pytest.mark.parametrize(("fgsm", "verdict"), [(150, "significantly ahead of"), (101, "not significantly ahead of")])
def test_the_highest_training_is_told_with_its_lead(fgsm, verdict):
    # Transfer columns do not count: with them the other training would be ahead.
    matrix, sentences = _told((100, 100, 100, 200), fgsm=(fgsm, fgsm, fgsm, 0))
    (line,) = [s for s in sentences if s.startswith("Averaged over")]
    assert line.startswith(
        "Averaged over clean, Gaussian noise, FGSM (adaptive), FGSM on-the-fly training has the highest"
    )
    assert f"{100 * fgsm / N:.1f}% (" in line
    assert f", {verdict} SIGMA retraining: {100 * (fgsm - 100) / N:+.1f} points" in line
    lead = paired_difference(matrix.combined("fgsm/on_the_fly"), matrix.combined("sigma/retrain"))
    assert (verdict == "significantly ahead of") == (lead.low > 0)


def _verdict(rights, columns=COLUMNS, regimes=(BASE,)):
    matrix = matrix_of(rights, columns, regimes)
    sentences = verdict(matrix, cell_entries(matrix))
    assert len(sentences) <= 3
    assert not re.search(r"[\d.]+ to [\d.]+|\u2013|95%|p =", " ".join(sentences)), "no interval"
    return sentences


def test_every_number_of_a_model_at_chance_is_doubted():
    columns = [CLEAN, NOISE, ATTACK]
    matrix = matrix_of([[75, 60, 40], [190, 180, 100]], columns, [BASE, SIGMA])
    found = {(cell["regime"], cell["condition"]): codes_of(cell["flags"]) for cell in cell_entries(matrix)}
    assert [key[0] for key, codes in found.items() if "chance_level" in codes] == ["base"] * len(columns)
    assert "3 of the 6 numbers in the table have a flag" in verdict(matrix, cell_entries(matrix))[-1]


def test_the_verdict_does_not_hide_flags_of_the_run():
    net, images = cases.mlp(), cases.images(120)
    with torch.no_grad():
        labels = net(images).argmax(1)
    report = evaluate(
        net, (images, labels), {"FGSM": FGSM(0.01)}, mean=0.0, std=1.0, checks=Checks(images=8), progress=False
    )
    assert codes_of(report.results.flags) == ["single_step"]
    assert report.verdict[-1].endswith("no reason to doubt these numbers, but the whole run has 1 flag.")


def test_the_verdict_names_the_lowest_accuracy_and_the_best_of_the_others_there():
    columns = [CLEAN, NOISE, ATTACK, WALK]
    two = [outcomes_of(100), outcomes_of(100, shift=100)]  # no image survives both
    first, second, third = _verdict(
        [[190, 180, *two], [180, 180, 150, 150], [190, 180, 120, 120]], columns, [BASE, SIGMA, FGSM_RUN]
    )
    assert first == (
        "The base model classifies 95.0% of 200 clean test images correctly, but only 0.0% when every attack made "
        "against it is tried, far below guessing (33%)."
    )
    assert second == (
        "Under the same attacks, SIGMA retraining, the best of the 2 trainings, reaches 75.0%, significantly more than "
        "the base model, and 90.0% on clean images."
    )
    assert third == "Whether the attacks were strong enough was not checked."
    (_, second, _) = _verdict([[190, 180, *two], [180, 180, *two]], columns, [BASE, SIGMA])
    assert "SIGMA retraining reaches 0.0%, not significantly different from the base model, and" in second


def test_the_verdict_says_that_a_number_is_doubtful():
    masked = [[190, 180, 20, 20], [190, 180, 150, 20]]  # another model's samples find more errors
    first, second, third = _verdict(masked, COLUMNS, [BASE, FGSM_RUN])
    assert "but only 10.0% under FGSM" in first
    assert "FGSM on-the-fly training reaches 75.0% (flagged: masked), significantly more" in second
    assert third == "1 of the 8 numbers in the table has a flag, which is a reason to doubt it."


def test_the_verdict_on_a_given_model_alone():
    given = dataclasses.replace(BASE, name="model", protocol="given")
    first, second = _verdict([[190, 186]], [CLEAN, NOISE], [given])
    assert second == "No attack was tried, so this says nothing about robustness to attacks."
    assert first == (
        "The model classifies 95.0% of 200 clean test images correctly, but only 93.0% under Gaussian noise."
    )
    assert _verdict([[190]], [CLEAN], [given])[0] == "The model classifies 95.0% of 200 clean test images correctly."


def test_the_verdict_headlines_the_worst_case_of_one_radius_whose_cells_have_the_flags_of_its_attacks():
    columns, weak = [CLEAN, ATTACK, PGD_COLUMN, WALK], outcomes_of(20, attempted=100, converged=0)
    matrix = matrix_of([[190, outcomes_of(100), outcomes_of(150), weak]], columns)
    cells = {entry["condition"]: codes_of(entry["flags"]) for entry in cell_entries(matrix)}
    assert "unconverged" in cells["worst/all"]
    assert "unconverged" not in cells["worst/L\u221e 0.1"]
    first = _verdict([[190, outcomes_of(100), outcomes_of(150), weak]], columns)[0]
    assert first.endswith("but only 50.0% when every attack made against it within L\u221e 0.1 is tried.")


def test_models_that_are_used_as_they_are_lack_the_flag_of_a_single_training():
    matrix = matrix_of([[100]], [CLEAN], [BASE], [0])
    assert codes_of(run_flags(matrix, trained=False)) == []
