"""How cost and memory grow with paths, steps and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.speed import memory
from experiments.speed.attributor_rows import walk
from experiments.speed.clock import summary, timed
from experiments.speed.limit import Limit
from experiments.speed.nets import Case
from robustsigma import IDG, Attributor, ExpectedGradients, GuidedIntegratedGradients, IntegratedGradients, Sigma

Make = Callable[[Case, int], tuple[Attributor, Case]]


def _walk(case: Case, **changed: int) -> Sigma:
    return replace(walk(case), **{"paths": min(2, case.scale.paths), **changed})


COSTS: dict[str, tuple[str, Make]] = {
    "SIGMA, paths": ("paths", lambda case, n: (_walk(case, paths=n), case.first(case.scale.few))),
    "SIGMA, steps": ("steps", lambda case, n: (_walk(case, max_steps=n), case.first(case.scale.few))),
    "SIGMA, images": ("images", lambda case, n: (_walk(case), case.first(n))),
    "IG, steps": ("steps", lambda case, n: (IntegratedGradients(4 * n), case.first(case.scale.few))),
    "IG, images": ("images", lambda case, n: (IntegratedGradients(case.scale.steps), case.first(n))),
}
MEMORY: dict[str, Callable[[Case, int], Attributor]] = {
    "SIGMA": lambda case, n: _walk(case, max_steps=n),
    "IG": lambda case, n: IntegratedGradients(8 * n),
    "IDG": lambda case, n: IDG(8 * n),
    "EG": lambda case, n: ExpectedGradients(8 * n),
    "Guided IG": lambda case, n: GuidedIntegratedGradients(n),
}


def cost(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return, for each curve, the cost at 1, 2, 4 and 8 times as much, in forward passes of the limit."""
    found = {}
    for name, (axis, make) in COSTS.items():
        most = {"images": len(case.images), "paths": 8, "steps": 8}[axis]
        at = [n for n in (1, 2, 4, 8, 16) if n <= most]
        calls = {n: make(case, n) for n in at}
        values: dict[int, list[float]] = {n: [] for n in at}
        for repeat in range(repeats + 1):
            for n, (method, few) in calls.items():
                unit = limit.sample().forward
                seconds, _ = timed(
                    lambda m=method, f=few: m(f.classifier, f.images, f.target, seed=0 * f.seeds), case.device
                )
                if repeat > 0:
                    values[n].append(seconds / unit)
        costs = [summary(values[n]) for n in at]
        found[name] = {"axis": axis, "at": at, "costs": costs, "exponent": _exponent(at, costs)}
    return {"settings": "cost in forward passes", "curves": found}


def _exponent(at: list[int], costs: list[dict[str, Any]]) -> float | None:
    """Return the slope of the line through log cost over log n: 1 where cost is proportional."""
    if len(at) < 2:
        return None
    return float(np.polyfit(np.log(at), np.log([c["median"] for c in costs]), 1)[0])


def held(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the most memory held at 1, 2, 4 and 8 times as many steps, in MiB and in passes of the best batch."""
    few = case.first(min(2, len(case.images)))
    batch = few.images[:1].expand(few.classifier.chunk_for(few.images), -1, -1, -1).contiguous()

    def one_pass() -> None:
        with few.classifier.frozen():
            few.classifier.score_and_gradient(batch, few.target[:1].expand(len(batch)))

    one_pass()
    unit = memory.peak(one_pass, case.device)
    found = {}
    for name, make in MEMORY.items():
        at = [2, 4, 8] if name == "SIGMA" else [4, 8, 16]
        peaks = []
        for n in at:
            method = make(few, n)
            peaks.append(
                memory.peak(lambda m=method: m(few.classifier, few.images, few.target, seed=0 * few.seeds), case.device)
            )
        found[name] = {"at": at, "mib": peaks, "passes": [peak / unit for peak in peaks]}
    return {
        "settings": f"2 images; a pass of {len(batch)} images holds {unit:.1f} MiB",
        "pass_mib": unit,
        "curves": found,
    }
