import dataclasses

import numpy as np
import pytest

from robustsigma import FGSM, PGD, GaussianNoise, Identity, SigmaSample
from robustsigma.engine.metrics import paired_difference
from robustsigma.evaluation.findings import findings
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.results import (
    Matrix,
    augmentation,
    cell_entries,
    cell_flags,
    differences,
    per_seed,
    run_flags,
)
from robustsigma.evaluation.run import Column, Regime

N = 200
CLEAN = Column("clean", "clean", "none", Identity())
NOISE = Column("gaussian", "gaussian", "none", GaussianNoise(0.1))
ATTACK = Column("fgsm/adaptive", "fgsm", "adaptive", FGSM(0.1))
MOVED = Column("fgsm/transfer", "fgsm", "transfer", FGSM(0.1))
WALK = Column("sigma/adaptive", "sigma", "adaptive", SigmaSample())
WALK_MOVED = Column("sigma/transfer", "sigma", "transfer", SigmaSample())
COLUMNS = [CLEAN, NOISE, ATTACK, MOVED]
BASE = Regime("base", "base", "none", None)
CONTROL = Regime("clean/retrain", "clean", "retrain", Identity())
SIGMA = Regime("sigma/retrain", "sigma", "retrain", SigmaSample())
FGSM_RUN = Regime("fgsm/on_the_fly", "fgsm", "on_the_fly", FGSM(0.1))


def _outcomes(right, n=N, searched=0, converged=None, steps=5, shift=0):
    """Return outcomes where the first `right` images, from `shift` on, are answered rightly."""
    correct = np.roll(np.arange(n) < right, shift)
    labels = np.arange(n) % 3
    walked = np.arange(n) < searched
    reached = np.ones(n, bool) if converged is None else ~walked | (np.arange(n) < converged)
    return Outcomes(
        indices=np.arange(n),
        labels=labels,
        predictions=np.where(correct, labels, (labels + 1) % 3),
        confidences=np.where(correct, 0.8, 0.1).astype(np.float32),
        searched=walked,
        converged=reached,
        steps=np.where(walked, steps, 0),
        rmse=np.full(n, 0.1, np.float32),
        linf=np.full(n, 0.2, np.float32),
        ssim=np.full(n, 0.9, np.float32),
    )


def _matrix(rights, columns=COLUMNS, regimes=(BASE,), seeds=(0,)):
    """Return a matrix; `rights` has a number of right answers, or outcomes, for each regime and column."""
    cells = {}
    for regime, row in zip(regimes, rights, strict=True):
        for column, found in zip(columns, row, strict=True):
            one = found if isinstance(found, Outcomes) else _outcomes(found)
            cells[regime.id, column.id] = [one] * len(seeds)
    return Matrix(list(regimes), list(columns), cells, list(seeds))


def _codes(flags):
    return [flag["code"] for flag in flags]


@pytest.mark.parametrize(
    ("searched", "converged", "flagged"),
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
def test_unconverged_is_more_than_a_twentieth_of_the_searches(searched, converged, flagged):
    outcomes = _outcomes(0, searched=searched, converged=converged)
    matrix = _matrix([[150, outcomes, outcomes]], [CLEAN, WALK, WALK_MOVED])
    for column in (WALK, WALK_MOVED):
        assert _codes(cell_flags(matrix, BASE, column)) == (["unconverged"] if flagged else [])
    entry = cell_entries(matrix)[1]
    assert entry["converged"] == (converged / searched if searched else None)
    assert entry["steps"] == (5 if searched else None)
    assert _codes(entry["flags"]) == (["unconverged"] if flagged else [])


@pytest.mark.parametrize(("attacked", "flagged"), [(20, False), (100, False), (101, False), (130, True), (200, True)])
def test_a_label_leak_is_an_attack_that_surely_helps(attacked, flagged):
    matrix = _matrix([[100, 199, attacked, attacked]])
    for column in (ATTACK, MOVED):
        assert _codes(cell_flags(matrix, BASE, column)) == (["label_leak"] if flagged else [])
    assert cell_flags(matrix, BASE, NOISE) == []  # noise is no attack
    assert cell_flags(matrix, BASE, CLEAN) == []


@pytest.mark.parametrize(
    ("adaptive", "moved", "flagged"), [(50, 90, False), (90, 90, False), (91, 90, False), (110, 60, True)]
)
def test_gradients_are_masked_where_samples_of_another_model_surely_work_better(adaptive, moved, flagged):
    matrix = _matrix([[150, 150, 30, 30], [150, 150, adaptive, moved]], regimes=(BASE, SIGMA))
    assert _codes(cell_flags(matrix, SIGMA, ATTACK)) == (["masked"] if flagged else [])
    for regime, column in ((SIGMA, MOVED), (SIGMA, CLEAN), (BASE, ATTACK)):
        assert cell_flags(matrix, regime, column) == []


def test_differences_are_over_the_same_images():
    # Both answer half; paired, the interval of equal answers is a point and that of opposite ones is wide.
    same = _matrix([[100], [_outcomes(100)]], [CLEAN], (BASE, SIGMA))
    opposite = _matrix([[100], [_outcomes(100, shift=100)]], [CLEAN], (BASE, SIGMA))
    (one,), (other,) = differences(same), differences(opposite)
    assert (one["mean"], one["low"], one["high"], one["n"]) == (0, 0, 0, N)
    assert other["mean"] == 0
    assert other["low"] < -0.1 < 0.1 < other["high"]


def test_differences_are_against_the_base_and_the_control():
    matrix = _matrix([[100, 80, 10, 10], [110, 80, 10, 10], [120, 90, 50, 30]], regimes=(BASE, CONTROL, SIGMA))
    found = {(e["regime"], e["against"], e["condition"]): e for e in differences(matrix)}
    pairs = [("clean/retrain", "base"), ("sigma/retrain", "base"), ("sigma/retrain", "clean/retrain")]
    assert set(found) == {(*pair, column.id) for pair in pairs for column in COLUMNS}
    entry = found["sigma/retrain", "clean/retrain", "fgsm/adaptive"]
    expected = paired_difference(np.arange(N) < 50, np.arange(N) < 10)
    assert {k: entry[k] for k in ("mean", "low", "high", "n")} == dataclasses.asdict(expected)
    assert entry["mean"] == pytest.approx(0.2)


def test_cells_over_two_seeds():
    matrix = _matrix([[100]], [CLEAN], seeds=(0, 3))
    matrix.cells["base", "clean"] = [_outcomes(100), _outcomes(160)]
    (entry,) = cell_entries(matrix)
    assert (entry["n"], entry["seeds"]) == (N, 2)
    assert entry["accuracy"]["mean"] == pytest.approx(0.65)
    assert entry["confidence"]["mean"] == pytest.approx(0.65 * 0.8 + 0.35 * 0.1, abs=1e-6)
    assert {name: part["mean"] for name, part in entry["quality"].items()} == pytest.approx(
        {"rmse": 0.1, "linf": 0.2, "ssim": 0.9}, abs=1e-6
    )
    assert [(e["seed"], e["accuracy"]) for e in per_seed(matrix)] == [(0, 0.5), (3, 0.8)]


@pytest.mark.parametrize(
    ("columns", "regimes", "seeds", "codes"),
    [
        ([CLEAN], [BASE], [0], ["1 seed"]),
        ([CLEAN], [BASE], [0, 1], []),
        ([CLEAN, ATTACK, MOVED], [BASE], [0, 1], ["single_step"]),
        ([CLEAN, ATTACK, Column("pgd/adaptive", "pgd", "adaptive", PGD(0.1))], [BASE], [0, 1], []),
        ([CLEAN, NOISE], [BASE], [0, 1], []),
        ([CLEAN], [BASE, Regime("g/retrain", "g", "retrain", GaussianNoise(0.1))], [0, 1], ["std_not_swept"]),
    ],
)
def test_flags_of_the_run(columns, regimes, seeds, codes):
    matrix = _matrix([[100] * len(columns)] * len(regimes), columns, regimes, seeds)
    assert _codes(run_flags(matrix)) == codes


def test_gaussian_noise_that_was_swept_is_not_flagged():
    swept = [Regime(f"g{i}/retrain", f"g{i}", "retrain", GaussianNoise(std)) for i, std in enumerate((0.05, 0.1, 0.2))]
    matrix = _matrix([[100]] * 4, [CLEAN], [BASE, *swept], [0, 1])
    assert "std_not_swept" not in _codes(run_flags(matrix))


def test_augmentation_counts_what_was_made():
    nothing = {"samples": 0, "searched": 0, "converged": 0, "steps": 0, "seconds": 0.0}
    walked = {"samples": 90, "searched": 80, "converged": 60, "steps": 300, "seconds": 2.0}
    plain = {**nothing, "samples": 50, "seconds": 1.0}
    matrix = _matrix([[100]] * 3, [CLEAN], (BASE, SIGMA, FGSM_RUN))
    made = {"base": nothing, "sigma/retrain": walked, "fgsm/on_the_fly": plain}
    entries = augmentation(matrix, {(regime, 0): {"augmentation": counts} for regime, counts in made.items()})
    assert entries == [
        {"regime": "sigma/retrain", "seed": 0, "samples": 90, "seconds": 2.0, "converged": 0.75, "steps": 3.8},
        {"regime": "fgsm/on_the_fly", "seed": 0, "samples": 50, "seconds": 1.0, "converged": None, "steps": None},
    ]


def _told(sigma, control=None, fgsm=(100, 100, 100, 100), columns=COLUMNS):
    rows, regimes = [[160, 120, 20, 20]], [BASE]
    for row, regime in ((control, CONTROL), (sigma, SIGMA), (fgsm, FGSM_RUN)):
        if row is not None:
            rows.append(row)
            regimes.append(regime)
    matrix = _matrix(rows, columns, regimes)
    return matrix, findings(matrix, 3)


def test_the_first_finding_is_the_base_model():
    matrix, (first, *_) = _told((100, 100, 100, 100))
    assert first.startswith("The base model is right on 80.0 % (")
    low, high = (100 * getattr(matrix.accuracy("base", "gaussian"), end) for end in ("low", "high"))
    assert f"60.0 % ({low:.1f} to {high:.1f}) under Gaussian noise" in first
    assert "10.0 % (" in first
    assert "under FGSM" in first
    assert first.endswith("chance is 33 %.")


@pytest.mark.parametrize("control", [None, (160, 120, 20, 20)])
def test_the_effect_of_sigma_is_told_with_its_sign_and_its_doubt(control):
    worse, surely = 160 - 60, 20 + 60
    matrix, sentences = _told((worse, 121, surely, 20), control)
    (line,) = [s for s in sentences if s.startswith("SIGMA retraining, against")]
    assert ("the clean control:" if control else "the base model:") in line
    against = "clean/retrain" if control else "base"
    clean, noise, attack = line.removesuffix(".").split(": ", 1)[1].split("; ")
    for part, column, mean in ((clean, CLEAN, -30), (noise, NOISE, 0.5), (attack, ATTACK, 30)):
        found = matrix.difference(("sigma/retrain", column.id), (against, column.id))
        assert f"{mean:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})" in part
        assert ("which zero lies within" in part) == (found.low <= 0 <= found.high)
    assert "zero lies within" in noise
    assert "zero lies within" not in clean + attack


def test_trainings_that_did_not_help_are_told_as_well():
    columns = [CLEAN, ATTACK, MOVED, WALK]
    _, sentences = _told((160, 20, 20, 20), columns=columns, fgsm=(160, 190, 90, 20))
    (line,) = [s for s in sentences if "trainings surely raised" in s]
    assert line == (
        "1 of 2 trainings surely raised the accuracy under what they trained on; "
        "not so SIGMA retraining +0.0 points (+0.0 to +0.0)."
    )
    _, sentences = _told((160, 20, 20, 80), columns=columns, fgsm=(160, 190, 90, 20))
    (line,) = [s for s in sentences if "trainings surely raised" in s]
    assert line == "2 of 2 trainings surely raised the accuracy under what they trained on."


@pytest.mark.parametrize(("fgsm", "verdict"), [(150, "surely ahead of"), (101, "not surely ahead of")])
def test_the_highest_training_is_told_with_its_lead(fgsm, verdict):
    # Transfer columns do not count: with them the other training would be ahead.
    matrix, sentences = _told((100, 100, 100, 200), fgsm=(fgsm, fgsm, fgsm, 0))
    (line,) = [s for s in sentences if s.startswith("Averaged over")]
    assert line.startswith("Averaged over clean, Gaussian noise, FGSM (adaptive), FGSM on-the-fly training is highest")
    assert f"{100 * fgsm / N:.1f} % (" in line
    assert f", {verdict} SIGMA retraining: {100 * (fgsm - 100) / N:+.1f} points" in line
    lead = paired_difference(matrix.combined("fgsm/on_the_fly"), matrix.combined("sigma/retrain"))
    assert (verdict == "surely ahead of") == (lead.low > 0)
