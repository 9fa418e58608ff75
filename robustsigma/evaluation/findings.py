"""What the numbers say, in sentences: each is built from the measured values, whichever way they point."""

from __future__ import annotations

from robustsigma.engine.metrics import Interval, mean_interval, paired_difference
from robustsigma.evaluation.matrix import CONTROL, WORST, Matrix
from robustsigma.evaluation.run import ADAPTIVE, BASE, Column, Regime
from robustsigma.report import text

_PROTOCOLS = {"none": "", "retrain": "retraining", "on_the_fly": "on-the-fly training"}


def findings(matrix: Matrix, classes: int) -> list[str]:
    """Return the sentences that open the report."""
    sentences = [_base(matrix, classes)]
    against = CONTROL if matrix.has(CONTROL) else BASE
    for regime in matrix.regimes:
        if regime.name == "sigma":
            sentences.append(_effect(matrix, regime, against))
    trained_on = [_own(matrix, regime, against) for regime in matrix.regimes]
    sentences += [line for line in (_summary(trained_on), _combined(matrix)) if line]
    return sentences


def title(name: str) -> str:
    """Return a regime or condition as people write it."""
    return "Gaussian noise" if name == "gaussian" else text.name(name)


def points(found: Interval) -> str:
    """Return a difference in points with its interval."""
    return f"{100 * found.mean:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _percent(found: Interval) -> str:
    return f"{100 * found.mean:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _live(matrix: Matrix) -> list[Column]:
    return [column for column in matrix.columns if column.reading != "transfer"]


def _base(matrix: Matrix, classes: int) -> str:
    parts = [
        f"{_percent(matrix.accuracy(BASE, c.id))} under {title(c.name)}" for c in _live(matrix) if c.name != "clean"
    ]
    clean = [_percent(matrix.accuracy(BASE, c.id)) for c in _live(matrix) if c.name == "clean"]
    head = f"The base model is right on {clean[0]} of clean images, " if clean else "The base model is right on "
    for name in matrix.worst:
        where = name.removeprefix(f"{WORST}/")
        within = "" if where == "all" else f" within {where}"
        parts.append(f"{_percent(matrix.accuracy(BASE, name))} under all adaptive attacks{within} at once")
    return head + ", ".join(parts) + f"; chance is {100 / classes:.0f} %."


def _effect(matrix: Matrix, regime: Regime, against: str) -> str:
    parts = []
    for column in _live(matrix):
        found = matrix.difference((regime.id, column.id), (against, column.id))
        sure = "" if found.low > 0 or found.high < 0 else ", which zero lies within"
        parts.append(f"{title(column.name)} {points(found)}{sure}")
    control = "the clean control" if against == CONTROL else "the base model"
    return f"SIGMA {_PROTOCOLS[regime.protocol]}, against {control}: " + "; ".join(parts) + "."


def _own(matrix: Matrix, regime: Regime, against: str) -> tuple[str, bool] | None:
    """Return whether a regime surely raised the accuracy under the condition that it trained on."""
    column = next((c for c in _live(matrix) if c.name == regime.name and c.name != "clean"), None)
    if column is None or regime.protocol == "none":
        return None
    found = matrix.difference((regime.id, column.id), (against, column.id))
    return f"{title(regime.name)} {_PROTOCOLS[regime.protocol]} {points(found)}", found.low > 0


def _summary(trained_on: list[tuple[str, bool] | None]) -> str | None:
    told = [entry for entry in trained_on if entry is not None]
    if not told:
        return None
    raised = [line for line, sure in told if sure]
    not_raised = [line for line, sure in told if not sure]
    line = f"{len(raised)} of {len(told)} trainings surely raised the accuracy under what they trained on"
    if not_raised:
        line += "; not so " + ", ".join(not_raised)
    return line + "."


def _combined(matrix: Matrix) -> str | None:
    """Return which training has the highest accuracy averaged over conditions: the claim of the paper's figure 10."""
    ranked = []
    for regime in matrix.regimes:
        if regime.protocol != "none":
            ranked.append((float(matrix.combined(regime.id).mean()), regime))
    if len(ranked) < 2:
        return None
    ranked.sort(key=lambda pair: -pair[0])
    best, second = ranked[0][1], ranked[1][1]
    lead = paired_difference(matrix.combined(best.id), matrix.combined(second.id))
    names = ", ".join(title(c.name) + (" (adaptive)" if c.reading == ADAPTIVE else "") for c in _live(matrix))
    verdict = "surely ahead of" if lead.low > 0 else "not surely ahead of"
    return (
        f"Averaged over {names}, {title(best.name)} {_PROTOCOLS[best.protocol]} is highest with "
        f"{_percent(mean_interval(matrix.combined(best.id)))}, {verdict} {title(second.name)} "
        f"{_PROTOCOLS[second.protocol]}: {points(lead)}."
    )
