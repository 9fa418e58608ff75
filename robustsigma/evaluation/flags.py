"""Flags: reasons to doubt a cell of the matrix, or the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robustsigma.engine.metrics import paired_difference, share_interval
from robustsigma.engine.metrics.interval import FEW_IMAGES
from robustsigma.engine.perturbations import FGSM, NFGSM, PGD, AttributionMasked, AutoAttack, GaussianNoise, PathEnd
from robustsigma.engine.perturbations.base import MANY_UNCONVERGED
from robustsigma.evaluation.attack_checks import DOUBLE_STEPS, NOISE
from robustsigma.evaluation.matrix import Correct, Matrix
from robustsigma.evaluation.outcomes import Outcomes
from robustsigma.evaluation.plan import ADAPTIVE, NO_ATTACK, TRANSFER, Condition, Regime
from robustsigma.evaluation.threat_model import ball, minimum_norm, restricted, threat_model, uses_eot, uses_gradients
from robustsigma.report import text

_MANY_REPEATS = 0.01
_SINGLE_STEP = {FGSM, NFGSM}
# Codes of `_network`.
NETWORK = ("not_evaluated", "random_outputs", "batch_dependent", "probabilities", "zero_gradient")
NOTES = ("few_classes",)  # codes of flags about the data, which are no reason to doubt an accuracy

Flag = dict[str, str]


def cell_flags(matrix: Matrix, regime: Regime, condition: Condition) -> list[Flag]:
    """Return the flags of a cell."""
    checks: list[Callable[[Matrix, Regime, Condition], Iterator[Flag]]] = [_unconverged]
    if condition.attack_setting != NO_ATTACK:
        checks.append(_label_leak)
    checks += [_network, _chance]
    if condition.attack_setting == ADAPTIVE:
        checks += [_overfitted, _unsettled, _transfer, _noise, _search, _single_step, _restricted, _curve, _far]
    found = [flag for check in checks for flag in check(matrix, regime, condition)]
    if condition.attack_setting == ADAPTIVE and isinstance(condition.perturbation, AutoAttack):
        known = {flag["code"] for flag in found}
        found += [f for f in _autoattack(matrix.cells[regime.id, condition.id], condition.perturbation, matrix.classes)
                  if f["code"] not in known]  # fmt: skip
    return found


def _flag(code: str, message: str) -> Flag:
    return {"code": code, "message": message}


def _unconverged(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    found = matrix.cells[regime.id, condition.id]
    attempted = np.concatenate([o.attempted for o in found])
    missed = attempted & ~np.concatenate([o.converged for o in found])
    if attempted.any() and missed.sum() > MANY_UNCONVERGED * attempted.sum():
        message = (
            f"More than {MANY_UNCONVERGED:.0%} of the searches stopped before they converged: the attack was weaker "
            "than specified, so the true accuracy may be lower than shown."
        )
        yield _flag("unconverged", message)


def _label_leak(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    if matrix.difference((regime.id, condition.id), (regime.id, matrix.clean.id)).low > 0:
        yield _flag(
            "label_leak",
            "Accuracy on attacked images is significantly higher than on clean ones: the attack leaks the label.",
        )


def _network(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    """Yield the flags of `inspect_classifier`.

    Random and batch-dependent outputs affect every condition, but random ones no attack that averages over them. Bad
    gradients affect only attacks that use them, so not SIGMA's walk.
    """
    found, adaptive = matrix.soundness(regime.id), condition.attack_setting == ADAPTIVE
    for flag in found.flags if found else []:
        if flag.code == "random_outputs" and adaptive:
            if not uses_eot(condition.perturbation):
                message = (
                    "The network's outputs are random, and this attack does not average over them: robustness was not "
                    "evaluated, and this accuracy says nothing about it. Use an attack with eot=20, or "
                    'AutoAttack(version="rand").'
                )
                yield _flag("not_evaluated", message)
        elif flag.code in ("random_outputs", "batch_dependent") or (flag.code == "probabilities" and adaptive):
            yield _flag(flag.code, flag.message)
        elif flag.code == "zero_gradient" and adaptive and uses_gradients(condition.perturbation):
            # The fraction is in a table, so that all cells share one footnote.
            message = "More than 10% of the loss gradients are zero or not finite: the gradients are probably masked."
            yield _flag(flag.code, message)


def _chance(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    if matrix.accuracy(regime.id, matrix.clean.id).low <= 1 / matrix.classes:
        message = (
            "Clean accuracy is not significantly above chance: mean and std, the order of the classes, or the training "
            "may be wrong."
        )
        yield _flag("chance_level", message)


def _autoattack(found: Sequence[Outcomes], attack: AutoAttack, classes: int) -> list[Flag]:
    """Return the flags of an AutoAttack's own results, over all seeds."""
    parts = [(each.found_by, each.zero_gradient) for each in found]
    if any(one is None for pair in parts for one in pair):
        return []
    found_by, zero = (torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True))
    return [_flag(flag.code, flag.message) for flag in attack.flags(found_by, zero, classes)]


def _overfitted(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    events = matrix.overfitting.get(regime.id, ())
    if events and uses_gradients(condition.perturbation):
        told = ", ".join(f"seed {f.seed}: from {f.before:.0%} to {f.after:.0%} in epoch {f.epoch}" for f in events)
        message = (
            f"During training the accuracy under PGD fell ({told}) while the accuracy under the training attack did "
            "not: the model overfitted catastrophically to single-step attacks."
        )
        yield _flag("overfitted", message)


def _unsettled(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    longer = matrix.check(regime.id, DOUBLE_STEPS, condition.id)
    if longer is not None and paired_difference(matrix.checked_images(regime.id, condition.id), longer).low > 0:
        message = "Twice the steps find significantly more errors: it has not converged, and the accuracy is too high."
        yield _flag("unsettled", message)


def _transfer(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    moved = f"{condition.name}/{TRANSFER}"
    if regime.id == matrix.base or (regime.id, moved) not in matrix.cells:
        return
    if matrix.difference((regime.id, condition.id), (regime.id, moved)).low > 0:
        message = (
            "Samples made against another model find significantly more errors than those made against this one: its "
            "gradients or its confidence are masked."
        )
        yield _flag("masked", message)


def _noise(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    noisy = matrix.check(regime.id, NOISE, condition.id)
    if noisy is not None and paired_difference(matrix.checked_images(regime.id, condition.id), noisy).low > 0:
        yield _flag("masked", "Gaussian noise of the same RMSE finds significantly more errors: the attack is misled.")


def _search(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    """Compare a search with all gradient attacks in the same ball together; a single-step attack may well be weaker."""
    if not uses_gradients(condition.perturbation):
        return
    kinds = {c.id: uses_gradients(c.perturbation) for c in matrix.conditions}
    same = matrix.same_ball(condition)
    by_gradient, free = ([name for name in same if kinds[name] is kind] for kind in (True, False))
    pairs = [(_all_correct(matrix.correct, regime, by_gradient), matrix.correct(regime.id, name)) for name in free]
    found = matrix.search(regime.id, condition)
    if found is not None:
        pairs.append((_all_correct(matrix.checked_images, regime, by_gradient), found))
    if any(paired_difference(first, second).low > 0 for first, second in pairs):
        message = (
            "A search without gradients finds significantly more errors in the same ball than all gradient attacks "
            "together: the gradients are masked, or the attacks are too weak."
        )
        yield _flag("masked", message)


def _all_correct(correct: Callable[[str, str], Correct], regime: Regime, names: list[str]) -> Correct:
    """Return (seeds, n) with 1 where the prediction is correct under each of some attacks."""
    return np.min([correct(regime.id, name) for name in names], axis=0)


def _single_step(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    if not isinstance(condition.perturbation, PGD):
        return
    kinds = {c.id: type(c.perturbation) for c in matrix.conditions}
    single = [name for name in matrix.same_ball(condition) if kinds[name] is FGSM]
    if any(matrix.difference((regime.id, condition.id), (regime.id, name)).low > 0 for name in single):
        yield _flag(
            "masked", "One step finds significantly more errors in the same ball than many: the gradients are masked."
        )


def _restricted(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    bounded = ball(condition.perturbation)
    if bounded is not None and bounded[1] == 0:
        yield _flag("no_radius", "The radius is 0, so nothing is attacked. In Python 8 // 255 is 0; write 8 / 255.")
    attacks = {c.id: c.perturbation for c in matrix.conditions}
    same = matrix.same_ball(condition)
    if same and all(restricted(attacks[name]) for name in same):
        message = (
            "Every attack in this ball aims at chosen classes, or changes chosen pixels alone: others may find many "
            "more errors. Add PGD or AutoAttack with the same radius."
        )
        yield _flag("restricted", message)


def _curve(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    curve = matrix.curves(regime.id, condition.id)
    if curve is None:
        return
    if curve.rises:
        yield _flag("not_rising", "A larger eps finds significantly fewer errors: the attack is not reliable.")
    last = share_interval(curve.correct[:, -1])
    if curve.complete and isinstance(condition.perturbation, PGD) and last.low > curve.chance:
        message = "Accuracy stays above chance although the radius includes every image: the gradients are masked."
        yield _flag("masked", message)


def _far(matrix: Matrix, regime: Regime, condition: Condition) -> Iterator[Flag]:
    """Check that a minimum-norm attack succeeds, and compare it with the others in its norm, at their radii."""
    if minimum_norm(condition.perturbation) is None:
        return
    norm = threat_model(condition.perturbation, ADAPTIVE).norm
    distances = matrix.distances(regime.id, condition.id)
    if np.isinf(distances).mean() > MANY_UNCONVERGED:
        message = (
            f"The attack may change the image at will and yet fails for more than {MANY_UNCONVERGED:.0%} of the "
            "images: it has too few steps, or the gradients are masked."
        )
        yield _flag("unconverged", message)
    for other in matrix.conditions:
        bounded = ball(other.perturbation)
        if bounded is not None and bounded[0] == norm:
            left = (distances > bounded[1] * (1 + 1e-5) + 1e-7).astype(np.float64)
            if paired_difference(left, matrix.correct(regime.id, other.id)).low > 0:
                message = (
                    "Another attack finds significantly more errors within its radius than this one within the same: "
                    "the distances are too large. The gradients may be masked."
                )
                yield _flag("masked", message)
                return


def run_flags(
    matrix: Matrix,
    sweep: Sequence[Mapping[str, Any]] = (),
    made: Sequence[Mapping[str, Any]] = (),
    *,
    trained: bool = True,
) -> list[Flag]:
    """Return the flags of the whole run.

    Args:
        matrix: matrix of the run.
        sweep: tables of the sweep of Gaussian noise, one for each regime that it chose the noise of.
        made: what was made for training, by regime and seed (see `results.augmentation`).
        trained: whether a model was trained, rather than used as it was given.
    """
    flags = []
    if len(matrix.seeds) == 1 and trained:
        message = (
            "Every model was trained once: the intervals reflect the choice of images, not the randomness of training. "
            "Use --seeds 3."
        )
        flags.append(_flag("1 seed", message))
    images = min(len(outcomes.indices) for found in matrix.cells.values() for outcomes in found)
    if images < FEW_IMAGES:
        message = f"Only {text.count(images, 'test image')} per cell: too few for reliable intervals."
        flags.append(_flag("few_images_in_all", message))
    attacks = {type(each.perturbation) for each in matrix.conditions if uses_gradients(each.perturbation)}
    if attacks & _SINGLE_STEP and attacks <= {*_SINGLE_STEP, PathEnd, AttributionMasked}:
        message = "No gradient attack takes more than one step, which says little about robustness: add PGD."
        flags.append(_flag("single_step", message))
    return [*flags, *_unconverged_training(matrix, made), *_noise_of_training(matrix, sweep)]


def given_flags(
    matrix: Matrix, names: Sequence[str] | None, known: Mapping[str, Sequence[str]], *, changes: bool, repeats: int
) -> Iterator[Flag]:
    """Yield the flags of models and data that the user provided, which may not fit each other.

    Args:
        matrix: matrix of the run.
        names: names of the data's classes, or None if the data have none.
        known: names of the classes of models that have a card, by model.
        changes: whether images differ from one reading to the next.
        repeats: number of images that equal an earlier one.
    """
    count = len(next(iter(matrix.cells.values()))[0].labels)
    if repeats > _MANY_REPEATS * count:
        told = f"{repeats:,} of {count:,} images equal an earlier one in every pixel."
        message = f"{told} Intervals and tests take all images for independent, so they claim more than is known."
        yield _flag("repeated_images", message)
    if changes:
        message = (
            "The images differ from one reading to the next, as random transforms make them: accuracies are of one "
            "version of each image, and runs cannot be compared image by image. Test without random transforms."
        )
        yield _flag("random_images", message)
    if names is None:
        return
    if len(names) != matrix.classes:
        message = (
            f"The data name {text.count(len(names), 'class')}, and the network has {matrix.classes} logits: labels may "
            "not be the indices of its logits."
        )
        yield _flag("class_names", message)
    other = [model for model, own in known.items() if tuple(own) != tuple(names) and set(own) == set(names)]
    if other:
        message = (
            f"The data name the classes in another order than the card of {', '.join(other)}: labels may not be the "
            "indices of its logits. A dataset of robustsigma, such as ImageFolder, takes the order of the card."
        )
        yield _flag("class_names", message)


def _unconverged_training(matrix: Matrix, made: Sequence[Mapping[str, Any]]) -> Iterator[Flag]:
    shares: dict[str, list[float]] = {}
    for entry in made:
        if entry["converged"] is not None:
            shares.setdefault(entry["regime"], []).append(entry["converged"])
    names, means = _names(matrix), {name: float(np.mean(each)) for name, each in shares.items()}
    weak = [f"{names[name]}: {mean:.1%} converged" for name, mean in means.items() if mean < 1 - MANY_UNCONVERGED]
    if weak:
        message = (
            f"More than {MANY_UNCONVERGED:.0%} of the searches for training samples stopped before they converged: "
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
