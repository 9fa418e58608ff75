"""Results of minimum-norm attacks: accuracy over the radius, median distance, area under the curve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from robustsigma.engine.metrics import mean_interval, share_interval
from robustsigma.engine.metrics.interval import as_dict
from robustsigma.evaluation.matrix import Correct, Matrix, has_distances
from robustsigma.evaluation.threat_model import threat_model

_RADII, _SHOWN = 41, 0.95  # number of radii; quantile of the distances at which the curves end
_Z95 = 1.96


def distance_entries(matrix: Matrix) -> list[dict[str, Any]]:
    """Return an entry for each model under each minimum-norm attack.

    All models under an attack have the same radii, from 0 to the largest, so that their areas compare: the mean
    accuracy over these radii, in [0, 1].
    """
    entries = []
    for condition in matrix.conditions:
        if not has_distances(condition):
            continue
        every = {regime.id: matrix.distances(regime.id, condition.id) for regime in matrix.regimes}
        ends = [np.quantile(found[np.isfinite(found)], _SHOWN) for found in every.values() if np.isfinite(found).any()]
        largest = float(max(ends, default=0.0)) or 1.0
        radii = np.linspace(0, largest, _RADII)
        for regime, found in every.items():
            entries.append(
                {
                    "regime": regime,
                    "condition": condition.id,
                    "norm": threat_model(condition.perturbation, condition.attack_setting).norm,
                    "n": found.shape[1],
                    "misled": as_dict(share_interval(np.isfinite(found))),
                    "median": _median(found),
                    "area": as_dict(mean_interval(np.minimum(found, largest) / largest)),
                    "radii": radii.tolist(),
                    **bands(found > radius for radius in radii),
                }
            )
    return entries


def bands(tables: Iterable[Any]) -> dict[str, list[float]]:
    """Return the means of tables of 1 and 0, (seeds, n) each, and the ends of their intervals, as a curve has them."""
    found = [share_interval(table) for table in tables]
    return {end: [getattr(each, end) for each in found] for end in ("mean", "low", "high")}


def _median(found: Correct) -> dict[str, float | None]:
    """Return the median distance with its 95% interval by order statistics; None stands for infinity."""
    half = _Z95 / 2 / found.shape[1] ** 0.5  # the seeds share their images
    ends = {"low": ("lower", max(0.0, 0.5 - half)), "high": ("higher", min(1.0, 0.5 + half))}
    values = {"mean": float(np.median(found))}
    values |= {name: float(np.quantile(found, at, method=how)) for name, (how, at) in ends.items()}  # type: ignore[call-overload]
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
