"""The completeness gap of IG against the passes it took, for each quadrature rule, beside captum's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from experiments.speed.limit import Limit
from experiments.speed.nets import Case
from experiments.speed.passes import counted
from experiments.speed.peers import library
from robustsigma import IntegratedGradients
from robustsigma.engine.attributors.integrated_gradients import RULES

_CAPTUM = {
    "gauss_legendre": "gausslegendre",
    "midpoint": "riemann_middle",
    "left": "riemann_left",
    "right": "riemann_right",
    "trapezoid": "riemann_trapezoid",
}


def _relative(gap: Tensor, drop: Tensor) -> float:
    return float((gap / drop.abs().clamp(min=1e-6)).median())


def measure(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the median over images of |sum of values - drop| / |drop|, and the passes an image."""
    most = case.scale.steps
    steps = [n for n in (2, 4, 8, 16, 32, 64) if n <= 2 * most]
    few = case.first(case.scale.few)
    curves: dict[str, dict[str, list[float]]] = {}
    for rule in RULES:
        for n in steps:
            with counted(few.classifier) as passes:
                result = IntegratedGradients(n, rule)(few.classifier, few.images, few.target)
            _add(curves, rule, passes.total / len(few.images), _relative(result.gap(), result.drop))
            if rule not in _CAPTUM:
                continue
            with counted(few.plain) as passes:
                gap = _captum(few, n, rule)
            _add(curves, f"captum, {rule}", passes.total / len(few.images), _relative(gap, result.drop))
    return {"settings": f"{len(few.images)} images, black baseline, logit", "curves": curves}


def _captum(case: Case, steps: int, rule: str) -> Tensor:
    """Return captum's gap (B,); its passes are those of the values, and a forward pass of both ends for the gap."""
    method = library("captum.attr").IntegratedGradients(case.plain)
    batch = case.classifier.chunk_for(case.images)
    _, delta = method.attribute(
        case.images,
        target=case.target,
        n_steps=steps,
        method=_CAPTUM[rule],
        internal_batch_size=batch,
        return_convergence_delta=True,
    )
    return delta.abs()


def _add(curves: dict[str, dict[str, list[float]]], name: str, passes: float, gap: float) -> None:
    curve = curves.setdefault(name, {"passes": [], "gap": []})
    curve["passes"].append(passes)
    curve["gap"].append(gap)
