"""Names and numbers of the study as people write them."""

from __future__ import annotations

from typing import Any

from robustsigma.report import text
from study.numbers import COMBINED, OTHERS
from study.plans import SAMPLES, TIME, VARIATIONS

TABLES = {SAMPLES: "matched by samples", TIME: "matched by time", VARIATIONS: "variations"}
_ROWS = {
    "base": "base model",
    "clean": "clean control",
    "gaussian": "best Gaussian noise",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "sigma_transfer": "SIGMA made once (the paper)",
    "sigma": "SIGMA on the fly",
    "sigma_bank": "SIGMA with a bank",
    "mixture": "noise + FGSM + SIGMA",
    "mixture_without_sigma": "noise + FGSM",
}
_CONDITIONS = {
    "clean": "clean images",
    "gaussian": "Gaussian noise",
    "fgsm/adaptive": "FGSM",
    "pgd/adaptive": "PGD",
    "sigma/adaptive": "adaptive SIGMA",
    "sigma/transfer": "transferred SIGMA",
    "worst/all": "all attacks at once",
    COMBINED: "mean of all",
    OTHERS: "mean without SIGMA",
}


def row(name: str) -> str:
    """Return a training's name."""
    return _ROWS.get(name, name)


def column(name: str) -> str:
    """Return a condition's name."""
    return _CONDITIONS[name]


def shown(found: dict[str, Any]) -> list[str]:
    """Return the conditions that the page shows, of those that a result has."""
    have = {cell["condition"] for cell in found["tables"][SAMPLES]["cells"]}
    return [name for name in _CONDITIONS if name in have]


def percent(interval: dict[str, float]) -> str:
    """Return an accuracy in per cent with its interval."""
    mean, low, high = (text.percent(interval[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low}{text.DASH}{high})"


def points(interval: dict[str, float]) -> str:
    """Return a difference in points with its interval."""
    mean, low, high = (text.points(interval[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def sign(interval: dict[str, float]) -> int:
    """Return 1 where an interval is wholly above zero, -1 where it is below, else 0."""
    return (interval["low"] > 0) - (interval["high"] < 0)
