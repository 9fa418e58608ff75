"""Matrices of outcomes that are made up."""

import numpy as np

from robustsigma import FGSM, PGD, GaussianNoise, Identity, SigmaSample
from robustsigma.evaluation import block_evaluation
from robustsigma.evaluation.matrix import Matrix
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import Condition, Regime
from robustsigma.evaluation.store import model_name
from robustsigma.runs.blocks import Blocks

N = 200
CLEAN = Condition("clean", "clean", "none", Identity())
NOISE = Condition("gaussian", "gaussian", "none", GaussianNoise(0.1))
ATTACK = Condition("fgsm/adaptive", "fgsm", "adaptive", FGSM(0.1))
MOVED = Condition("fgsm/transfer", "fgsm", "transfer", FGSM(0.1))
WALK = Condition("sigma/adaptive", "sigma", "adaptive", SigmaSample())
WALK_MOVED = Condition("sigma/transfer", "sigma", "transfer", SigmaSample())
PGD_COLUMN = Condition("pgd/adaptive", "pgd", "adaptive", PGD(0.1))
COLUMNS = [CLEAN, NOISE, ATTACK, MOVED]
BASE = Regime("base", "base", "none", None)
CONTROL = Regime("clean/retrain", "clean", "retrain", Identity())
SIGMA = Regime("sigma/retrain", "sigma", "retrain", SigmaSample())
FGSM_RUN = Regime("fgsm/on_the_fly", "fgsm", "on_the_fly", FGSM(0.1))


def outcomes_of(right, n=N, attempted=0, converged=None, steps=5, shift=0):
    """Return outcomes where the first `right` images, from `shift` on, are answered rightly."""
    correct = np.roll(np.arange(n) < right, shift)
    labels = np.arange(n) % 3
    walked = np.arange(n) < attempted
    reached = np.ones(n, bool) if converged is None else ~walked | (np.arange(n) < converged)
    return Outcomes(
        indices=np.arange(n),
        labels=labels,
        predictions=np.where(correct, labels, (labels + 1) % 3),
        confidences=np.where(correct, 0.8, 0.1).astype(np.float32),
        max_confidence=np.full(n, 0.8, np.float32),
        top5=np.ones(n, bool),
        attempted=walked,
        converged=reached,
        steps=np.where(walked, steps, 0),
        rmse=np.full(n, 0.1, np.float32),
        linf=np.full(n, 0.2, np.float32),
        ssim=np.full(n, 0.9, np.float32),
    )


def stored(folder, seed, regime, condition):
    """Return the outcomes that a finished run of a study keeps."""
    return block_evaluation.outcomes_of(Blocks(_file(folder, seed, regime)).all(), condition)


def store(folder, seed, regime, found):
    """Write outcomes by condition as a finished run keeps them."""
    first = next(iter(found.values()))
    rows = {"indices": first.indices, "labels": first.labels}
    for condition, outcomes in found.items():
        columns = {name: values for name, values in vars(outcomes).items() if values is not None}
        rows |= {f"{condition}|{name}": values for name, values in columns.items()}
    blocks = Blocks(_file(folder, seed, regime))
    blocks.path.unlink(missing_ok=True)
    blocks.add(0, rows)
    blocks.finish()


def _file(folder, seed, regime):
    return block_evaluation.outcomes_file(folder, model_name(seed, regime))


def matrix_of(rights, columns=COLUMNS, regimes=(BASE,), seeds=(0,)):
    """Return a matrix; `rights` has a number of right answers, or outcomes, for each regime and column."""
    cells = {}
    for regime, row in zip(regimes, rights, strict=True):
        for column, found in zip(columns, row, strict=True):
            one = found if isinstance(found, Outcomes) else outcomes_of(found)
            cells[regime.id, column.id] = [one] * len(seeds)
    return Matrix(list(regimes), list(columns), cells, list(seeds), 3)


def codes_of(flags):
    return [flag["code"] for flag in flags]
