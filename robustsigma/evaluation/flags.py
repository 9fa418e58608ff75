"""Flags: reasons to doubt a cell of the matrix, or the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robustsigma.engine.checks import Soundness
from robustsigma.engine.metrics import paired_difference, share_interval
from robustsigma.engine.metrics.interval import FEW_IMAGES
from robustsigma.engine.perturbations import FGSM, PGD, GaussianNoise
from robustsigma.evaluation.curves import common, surely_rises
from robustsigma.evaluation.diagnosis import NOISE, SEARCH, TWICE
from robustsigma.evaluation.matrix import Matrix, Table
from robustsigma.evaluation.run import ADAPTIVE, BASE, TRANSFER, Column, Regime
from robustsigma.evaluation.threat import ball, uses_gradients
from robustsigma.report import text

_MANY_UNCONVERGED = 0.05

Flag = dict[str, str]


def cell_flags(matrix: Matrix, regime: Regime, column: Column) -> list[Flag]:
    """Return the flags of a cell."""
    checks: list[Callable[[Matrix, Regime, Column], Iterator[Flag]]] = [_unconverged]
    if column.reading != "none":
        checks.append(_label_leak)
    checks.append(_network)
    if column.reading == ADAPTIVE:
        checks += [_overfitted, _unsettled, _transfer, _noise, _search, _single_step, _curve]
    return [flag for check in checks for flag in check(matrix, regime, column)]


def _flag(code: str, message: str) -> Flag:
    return {"code": code, "message": message}


def _unconverged(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    found = matrix.cells[regime.id, column.id]
    searched = np.concatenate([o.searched for o in found])
    missed = searched & ~np.concatenate([o.converged for o in found])
    if searched.any() and missed.sum() > _MANY_UNCONVERGED * searched.sum():
        message = (
            f"More than {_MANY_UNCONVERGED:.0%} of the searches stopped before they converged: the attack was weaker "
            "than specified, so the true accuracy may be lower than shown."
        )
        yield _flag("unconverged", message)


def _label_leak(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    if matrix.difference((regime.id, column.id), (regime.id, matrix.clean.id)).low > 0:
        yield _flag(
            "label_leak",
            "Accuracy on attacked images is significantly higher than on clean ones: the attack leaks the label.",
        )


def _network(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    """Yield the flags of `inspect_classifier`.

    Random and batch-dependent outputs concern every column, what is wrong with gradients concerns attacks that use
    them: not SIGMA's walk.
    """
    found = soundness(matrix, regime.id)
    for flag in found.flags if found else []:
        if flag.code in ("random_outputs", "batch_dependent") or (
            flag.code == "probabilities" and column.reading == ADAPTIVE
        ):
            yield _flag(flag.code, flag.message)
        elif flag.code == "zero_gradient" and column.reading == ADAPTIVE and uses_gradients(column.perturbation):
            # The fraction is in a table, so that all cells share one footnote.
            message = "More than 10% of the loss gradients are zero or not finite: the gradients are probably masked."
            yield _flag(flag.code, message)


def soundness(matrix: Matrix, regime: str) -> Soundness | None:
    """Return the checks of the outputs and gradients of a regime's models, over its seeds."""
    found = [diagnosis.soundness for diagnosis in matrix.diagnoses.get(regime) or []]
    if not found:
        return None
    return Soundness(
        sum(one.images for one in found),
        any(one.probabilities for one in found),
        any(one.random_outputs for one in found),
        sum(one.dead for one in found),
        any(one.batch_dependent for one in found),
    )


def _overfitted(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    falls = matrix.falls.get(regime.id, ())
    if falls and uses_gradients(column.perturbation):
        told = ", ".join(f"seed {f.seed}: from {f.before:.0%} to {f.after:.0%} in epoch {f.epoch}" for f in falls)
        message = (
            f"During training the accuracy under PGD fell ({told}) while the accuracy under the training attack did "
            "not: the model overfitted catastrophically to single-step attacks."
        )
        yield _flag("overfitted", message)


def _unsettled(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    twice = matrix.checked(regime.id, TWICE, column.id)
    if twice is not None and paired_difference(matrix.examined(regime.id, column.id), twice).low > 0:
        message = "Twice the steps find significantly more errors: it has not converged, and the accuracy is too high."
        yield _flag("unsettled", message)


def _transfer(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    moved = f"{column.name}/{TRANSFER}"
    if regime.id == BASE or (regime.id, moved) not in matrix.cells:
        return
    if matrix.difference((regime.id, column.id), (regime.id, moved)).low > 0:
        message = (
            "Samples made against another model find significantly more errors than those made against this one: its "
            "gradients or its confidence are masked."
        )
        yield _flag("masked", message)


def _noise(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    noisy = matrix.checked(regime.id, NOISE, column.id)
    if noisy is not None and paired_difference(matrix.examined(regime.id, column.id), noisy).low > 0:
        yield _flag("masked", "Gaussian noise of the same RMSE finds significantly more errors: the attack is misled.")


def _search(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    """Compare a search with all gradient attacks in the same ball together; a single-step attack may well be weaker."""
    if not uses_gradients(column.perturbation):
        return
    kinds = {c.id: uses_gradients(c.perturbation) for c in matrix.columns}
    same = _same_ball(matrix, column)
    by_gradient, free = ([name for name in same if kinds[name] is kind] for kind in (True, False))
    pairs = [(_together(matrix.correct, regime, by_gradient), matrix.correct(regime.id, name)) for name in free]
    found = searched(matrix, regime.id, column)
    if found is not None:
        pairs.append((_together(matrix.examined, regime, by_gradient), found))
    if any(paired_difference(first, second).low > 0 for first, second in pairs):
        message = (
            "A search without gradients finds significantly more errors in the same ball than all gradient attacks "
            "together: the gradients are masked, or the attacks are too weak."
        )
        yield _flag("masked", message)


def _together(answers: Callable[[str, str], Table], regime: Regime, names: list[str]) -> Table:
    """Return (seeds, n) with 1 where the prediction is correct under each of some attacks."""
    return np.min([answers(regime.id, name) for name in names], axis=0)


def searched(matrix: Matrix, regime: str, column: Column) -> Table | None:
    """Return (seeds, n) with 1 where the prediction is correct after a search in the same ball, or None."""
    found = (matrix.checked(regime, SEARCH, name) for name in _same_ball(matrix, column))
    return next((right for right in found if right is not None), None)


def _same_ball(matrix: Matrix, column: Column) -> list[str]:
    """Return the adaptive attacks in the same ball, by their ids."""
    bounded = ball(column.perturbation)
    adaptive = [c for c in matrix.columns if c.reading == ADAPTIVE]
    return [c.id for c in adaptive if bounded is not None and ball(c.perturbation) == bounded]


def _single_step(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    if not isinstance(column.perturbation, PGD):
        return
    kinds = {c.id: type(c.perturbation) for c in matrix.columns}
    single = [name for name in _same_ball(matrix, column) if kinds[name] is FGSM]
    if any(matrix.difference((regime.id, column.id), (regime.id, name)).low > 0 for name in single):
        yield _flag(
            "masked", "One step finds significantly more errors in the same ball than many: the gradients are masked."
        )


def _curve(matrix: Matrix, regime: Regime, column: Column) -> Iterator[Flag]:
    curve = common(matrix, regime.id, column.id)
    if curve is None:
        return
    if surely_rises(curve):
        yield _flag("not_rising", "A larger eps finds significantly fewer errors: the attack is not reliable.")
    last = share_interval(curve.right[:, -1])
    if curve.complete and isinstance(column.perturbation, PGD) and last.low > curve.chance:
        message = "Accuracy stays above chance although the radius includes every image: the gradients are masked."
        yield _flag("masked", message)


def run_flags(
    matrix: Matrix, sweep: Sequence[Mapping[str, Any]] = (), made: Sequence[Mapping[str, Any]] = ()
) -> list[Flag]:
    """Return the flags of the whole run.

    Args:
        matrix: of the run.
        sweep: tables of the sweep of Gaussian noise, one for each regime that it chose the noise of.
        made: what was made for training, by regime and seed (see `results.augmentation`).
    """
    flags = []
    kinds = {type(column.perturbation).__name__ for column in matrix.columns}
    if len(matrix.seeds) == 1:
        message = (
            "Every model was trained once: the intervals reflect the choice of images, not the randomness of training. "
            "Use --seeds 3."
        )
        flags.append(_flag("1 seed", message))
    images = min(len(outcomes.indices) for found in matrix.cells.values() for outcomes in found)
    if images < FEW_IMAGES:
        message = f"Only {text.count(images, 'test image')} per cell: too few for reliable intervals."
        flags.append(_flag("few_images_in_all", message))
    if "FGSM" in kinds and "PGD" not in kinds:
        message = "FGSM is the only gradient attack. A single step says little about robustness: add PGD."
        flags.append(_flag("single_step", message))
    return [*flags, *_unconverged_training(matrix, made), *_noise_of_training(matrix, sweep)]


def _unconverged_training(matrix: Matrix, made: Sequence[Mapping[str, Any]]) -> Iterator[Flag]:
    shares: dict[str, list[float]] = {}
    for entry in made:
        if entry["converged"] is not None:
            shares.setdefault(entry["regime"], []).append(entry["converged"])
    names, means = _names(matrix), {name: float(np.mean(each)) for name, each in shares.items()}
    weak = [f"{names[name]}: {mean:.1%} converged" for name, mean in means.items() if mean < 1 - _MANY_UNCONVERGED]
    if weak:
        message = (
            f"More than {_MANY_UNCONVERGED:.0%} of the searches for training samples stopped before they converged: "
            f"the samples are weaker than specified ({'; '.join(weak)})."
        )
        yield _flag("unconverged_training", message)


def _names(matrix: Matrix) -> dict[str, str]:
    """Return what the report calls each regime."""
    return {regime.id: text.regime_name(text.name(regime.name), regime.protocol) for regime in matrix.regimes}


def _noise_of_training(matrix: Matrix, sweep: Sequence[Mapping[str, Any]]) -> Iterator[Flag]:
    """Flag noise whose strength was not chosen by a sweep; regimes of several strengths count as a sweep."""
    names = _names(matrix)
    swept = [entry["regime"] for entry in sweep]
    by_hand = {r.id: r.perturbation.std for r in matrix.regimes if isinstance(r.perturbation, GaussianNoise)}
    fixed = {name: std for name, std in by_hand.items() if name not in swept}
    if len(set(fixed.values())) == 1:
        where = "; ".join(names[name] for name in fixed)
        message = (
            f"Only one strength of Gaussian noise was used for training ({where}), without a sweep: another one may be "
            "better. The setting `sweep` tries several (configs/evaluate/swept.yaml)."
        )
        yield _flag("std_not_swept", message)
    for entry in sweep:
        tried = [row["std"] for row in entry["rows"]]
        if entry["best"] in (min(tried), max(tried)):
            end, beyond = ("smallest", "smaller") if entry["best"] == min(tried) else ("largest", "larger")
            name = names[entry["regime"]]
            message = (
                f"{name}: the best std, {entry['best']:g}, is the {end} value tried; a {beyond} one may be better."
            )
            yield _flag("std_at_edge", message)
