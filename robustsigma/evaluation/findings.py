"""The verdict and the findings of an evaluation: sentences about the measured values, good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustsigma.engine.metrics import Interval, mean_interval, paired_difference, significance
from robustsigma.engine.metrics.interval import LEVEL
from robustsigma.engine.perturbations import Identity
from robustsigma.evaluation.flags import NOTES
from robustsigma.evaluation.given_models import SINGLE
from robustsigma.evaluation.matrix import CONTROL, WORST, Matrix, has_distances
from robustsigma.evaluation.plan import ADAPTIVE, GIVEN, TRANSFER, Condition, Regime
from robustsigma.evaluation.threat_model import threat_model
from robustsigma.report import text

Doubted = dict[tuple[str, str], list[str]]  # codes of flags by regime and condition
_PROTOCOLS = {"retrain": "retraining", "on_the_fly": "on-the-fly training"}


def verdict(matrix: Matrix, cells: Sequence[dict[str, Any]], flags: Sequence[Any] = ()) -> list[str]:
    """Return at most three sentences, without intervals, that a reader needs before any table.

    They say how accurate the first model is on clean images and where it is worst, which other model is best there,
    and whether the checks found reasons to doubt the accuracies.

    Args:
        matrix: the outcomes.
        cells: entries of the cells, with their flags.
        flags: those of the whole run.
    """
    base, subject = matrix.regimes[0], _subject(matrix, matrix.regimes[0])
    clean, n = matrix.accuracy(base.id, matrix.clean.id), matrix.correct(base.id, matrix.clean.id).shape[1]
    doubted: Doubted = {}
    for cell in cells:
        if codes := [flag["code"] for flag in cell["flags"] if flag["code"] not in NOTES]:
            doubted[cell["regime"], cell["condition"]] = codes
    opening = f"{subject} classifies {text.percent(clean.mean)}% of {text.count(n, 'clean test image')} correctly"
    lowest = min(
        _bounded(matrix) or [name for name in matrix.all_ids if name != matrix.clean.id],
        key=lambda name: (matrix.accuracy(base.id, name).mean, -len(matrix.worst.get(name, ()))),
        default=None,
    )
    if lowest is None:
        distances = [_misled(matrix, base, each) for each in filter(has_distances, matrix.conditions)]
        return [f"{opening}.", *distances[:1], _doubts(matrix, doubted, len(cells), len(flags))]
    found = matrix.accuracy(base.id, lowest)
    lost = matrix.difference((base.id, matrix.clean.id), (base.id, lowest)).low > 0
    guess = _guessing(found, 1 / matrix.classes) if lost else ""
    where = _where(matrix, lowest)
    opening += f"{', but only' if lost else ' and'} {text.percent(found.mean)}% {where}{guess}."
    return [opening, *_best_there(matrix, lowest, doubted), _doubts(matrix, doubted, len(cells), len(flags))]


def _bounded(matrix: Matrix) -> list[str]:
    """Return the worst cases of one norm and radius; the one over all attacks holds for no single threat model."""
    return [name for name in matrix.worst if name != f"{WORST}/all"]


def _guessing(found: Interval, chance: float) -> str:
    """Return how an accuracy compares with that of guessing; nothing where it is significantly higher."""
    if found.low > chance:
        return ""
    if found.high >= chance:
        return ", no better than guessing"
    return f", {'far ' * (found.mean < chance / 2)}below guessing ({100 * chance:.2g}%)"


def _where(matrix: Matrix, condition: str) -> str:
    """Return the name of a condition or a worst case in a sentence."""
    if condition in matrix.worst:
        return f"when every attack made against it{_within(condition)} is tried"
    found = next(each for each in matrix.conditions if each.id == condition)
    return f"under {title(found.name)}" + " made against the base model" * (found.attack_setting == TRANSFER)


def _within(worst: str) -> str:
    return text.within(worst.removeprefix(f"{WORST}/"))


def _best_there(matrix: Matrix, condition: str, doubted: Doubted) -> list[str]:
    """Return a sentence about the best of the other models where the first one is worst; without others, nothing."""
    base, *others = matrix.regimes
    if not others:
        return []
    best = max(others, key=lambda regime: matrix.accuracy(regime.id, condition).mean)
    change, p = matrix.changes(base.id)[best.id, condition]
    sign = int(np.sign(change.mean)) if p < LEVEL else 0
    compared = ("not significantly different from", "significantly more than", "significantly less than")[sign]
    kind = "trainings" if best.retrained else "other models"
    among = f", the best of the {len(others)} {kind}," if others[1:] else ""
    score, clean = (text.percent(matrix.accuracy(best.id, each).mean) for each in (condition, matrix.clean.id))
    codes = dict.fromkeys(doubted.get((best.id, condition), ()))
    flags = f" (flagged: {', '.join(codes)})" if codes else ""
    name = f"{title(best.name)} {_PROTOCOLS[best.protocol]}" if best.retrained else text.printable(best.name)
    than = "the base model" if best.retrained else _subject(matrix, base)
    same = "Under the same attacks" if condition in matrix.worst else "Under the same condition"
    return [f"{same}, {name}{among} reaches {score}%{flags}, {compared} {than}, and {clean}% on clean images."]


def _doubts(matrix: Matrix, doubted: Doubted, count: int, of_run: int) -> str:
    """Return a sentence about the flags of the cells, or else of the run."""
    if doubted:
        has, it = ("has", "it") if len(doubted) == 1 else ("have", "them")
        return f"{len(doubted)} of the {count} numbers in the table {has} a flag, which is a reason to doubt {it}."
    if all(each.attack_setting != ADAPTIVE for each in matrix.conditions):
        return "No attack was tried, so this says nothing about robustness to attacks."
    if any(found.of_attacks for each in matrix.attack_checks.values() for found in each):
        but = f", but the whole run has {text.count(of_run, 'flag')}" if of_run else ""
        return f"The automatic checks of the attacks found no reason to doubt these numbers{but}."
    return "Whether the attacks were strong enough was not checked."


def findings(matrix: Matrix) -> list[str]:
    """Return sentences about the models with their intervals."""
    sentences = [_described(matrix, regime) for regime in matrix.regimes if not regime.retrained]
    against = CONTROL if matrix.has(CONTROL) else matrix.base
    for regime in matrix.regimes:
        if regime.name == "sigma" and regime.retrained:
            sentences.append(_effect(matrix, regime, against))
    trained_on = [_own(matrix, regime, against) for regime in matrix.regimes]
    sentences += [line for line in (_summary(trained_on), _combined(matrix)) if line]
    return sentences


def title(name: str) -> str:
    """Return the name of a regime or condition in a sentence."""
    return "Gaussian noise" if name == "gaussian" else text.name(name)


def points(found: Interval) -> str:
    """Return a difference in points with its interval."""
    return f"{text.points(found.mean)} points ({text.points(found.low)} to {text.points(found.high)})"


def _percent(found: Interval) -> str:
    return f"{text.percent(found.mean)}% ({text.percent(found.low)} to {text.percent(found.high)})"


def _described(matrix: Matrix, regime: Regime) -> str:
    clean, others = matrix.clean, [c for c in matrix.not_transferred if not isinstance(c.perturbation, Identity)]
    parts = [f"{_percent(matrix.accuracy(regime.id, c.id))} under {title(c.name)}" for c in others]
    parts.insert(0, f"{_percent(matrix.accuracy(regime.id, clean.id))} of clean images correctly")
    for name in matrix.worst:
        parts.append(f"{_percent(matrix.accuracy(regime.id, name))} under all adaptive attacks{_within(name)} at once")
    described = f"{_subject(matrix, regime)} classifies {', '.join(parts)}; chance is {100 / matrix.classes:.2g}%."
    return " ".join([described, *(_misled(matrix, regime, each) for each in filter(has_distances, matrix.conditions))])


def _subject(matrix: Matrix, regime: Regime) -> str:
    if regime.protocol == GIVEN and regime.name != SINGLE:
        return text.printable(regime.name)
    return "The base model" if len(matrix.regimes) > 1 else "The model"


def _misled(matrix: Matrix, regime: Regime, condition: Condition) -> str:
    """Return how far a minimum-norm attack has to go."""
    middle = float(np.median(matrix.distances(regime.id, condition.id)))
    norm = threat_model(condition.perturbation, condition.attack_setting).norm
    change = f"half of the images by a change of at most {middle:.3g} ({norm})"
    reached = change if np.isfinite(middle) else "fewer than half of the images"
    return f"{title(condition.name)} misleads it in {reached}."


def _effect(matrix: Matrix, regime: Regime, against: str) -> str:
    parts = []
    for condition in matrix.not_transferred:
        found, p = matrix.changes(against)[regime.id, condition.id]
        note = "" if p < LEVEL else " (not significant)"
        parts.append(f"{title(condition.name)} {points(found)}{note}")
    control = "the clean control" if against == CONTROL else "the base model"
    return f"SIGMA {_PROTOCOLS[regime.protocol]}, compared with {control}: " + "; ".join(parts) + "."


def _own(matrix: Matrix, regime: Regime, against: str) -> tuple[str, bool] | None:
    """Return whether a regime significantly improved the accuracy under the condition that it was trained on."""
    condition = next((c for c in matrix.not_transferred if c.name == regime.name and c.name != "clean"), None)
    if condition is None or not regime.retrained:
        return None
    found, p = matrix.changes(against)[regime.id, condition.id]
    return f"{title(regime.name)} {_PROTOCOLS[regime.protocol]} {points(found)}", found.mean > 0 and p < LEVEL


def _summary(trained_on: list[tuple[str, bool] | None]) -> str | None:
    known = [entry for entry in trained_on if entry is not None]
    if not known:
        return None
    exceptions = [line for line, improved in known if not improved]
    line = (
        f"{len(known) - len(exceptions)} of {text.count(len(known), 'training')} significantly improved accuracy under "
        "the perturbation used for training"
    )
    noun = "exception" if len(exceptions) == 1 else "exceptions"
    return line + (f"; the {noun}: {', '.join(exceptions)}." if exceptions else ".")


def _combined(matrix: Matrix) -> str | None:
    """Return which training has the highest accuracy averaged over conditions, as figure 10 of the paper does."""
    ranked = []
    for regime in matrix.regimes:
        if regime.retrained:
            ranked.append((float(matrix.combined(regime.id).mean()), regime))
    if len(ranked) < 2:
        return None
    ranked.sort(key=lambda pair: -pair[0])
    best, second = ranked[0][1], ranked[1][1]
    leads = [paired_difference(matrix.combined(best.id), matrix.combined(r.id)) for _, r in ranked[1:]]
    lead = leads[0]
    names = ", ".join(
        title(c.name) + (" (adaptive)" if c.attack_setting == ADAPTIVE else "") for c in matrix.not_transferred
    )
    # The best of many is compared with every other.
    verdict = "significantly ahead of" if significance(leads)[0] > 0 else "not significantly ahead of"
    return (
        f"Averaged over {names}, {title(best.name)} {_PROTOCOLS[best.protocol]} has the highest accuracy, "
        f"{_percent(mean_interval(matrix.combined(best.id)))}, {verdict} {title(second.name)} "
        f"{_PROTOCOLS[second.protocol]}: {points(lead)}."
    )
