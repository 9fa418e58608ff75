"""The findings of an evaluation: sentences about the measured values, good or bad."""

from __future__ import annotations

import numpy as np

from robustsigma.engine.metrics import Interval, mean_interval, paired_difference, significance
from robustsigma.engine.metrics.interval import LEVEL
from robustsigma.engine.perturbations import Identity
from robustsigma.evaluation.matrix import CONTROL, WORST, Matrix, has_distances
from robustsigma.evaluation.plan import ADAPTIVE, GIVEN, Regime
from robustsigma.evaluation.threat_model import threat_model
from robustsigma.report import text

_PROTOCOLS = {"retrain": "retraining", "on_the_fly": "on-the-fly training"}


def findings(matrix: Matrix, classes: int) -> list[str]:
    """Return the sentences that open the report."""
    sentences = [_described(matrix, regime, classes) for regime in matrix.regimes if not regime.retrained]
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


def _described(matrix: Matrix, regime: Regime, classes: int) -> str:
    clean, others = matrix.clean, [c for c in matrix.not_transferred if not isinstance(c.perturbation, Identity)]
    parts = [f"{_percent(matrix.accuracy(regime.id, c.id))} under {title(c.name)}" for c in others]
    subject = text.printable(regime.name) if regime.protocol == GIVEN else "The base model"
    parts.insert(0, f"{_percent(matrix.accuracy(regime.id, clean.id))} of clean images")
    for name in matrix.worst:
        where = name.removeprefix(f"{WORST}/")
        within = "" if where == "all" else f" within {where}"
        parts.append(f"{_percent(matrix.accuracy(regime.id, name))} under all adaptive attacks{within} at once")
    described = f"{subject} classifies correctly {', '.join(parts)}; chance is {100 / classes:.2g}%."
    for condition in filter(has_distances, matrix.conditions):
        middle = float(np.median(matrix.distances(regime.id, condition.id)))
        norm = threat_model(condition.perturbation, condition.attack_setting).norm
        change = f"half of the images by a change of at most {middle:.3g} ({norm})"
        described += f" {title(condition.name)} misleads it in "
        described += f"{change if np.isfinite(middle) else 'fewer than half of the images'}."
    return described


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
    return line + (f"; the exceptions: {', '.join(exceptions)}." if exceptions else ".")


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
