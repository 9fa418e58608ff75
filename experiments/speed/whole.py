"""Rows that are more than one call: training steps, data loading, and how cost, memory and errors grow."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch

from experiments import training_step
from experiments.speed.cases import MEAN, STD, Case, build
from experiments.speed.limit import Limit, Passes, counted, seconds
from experiments.speed.methods import walk
from experiments.speed.peers import library
from experiments.speed.rows import mean, peak, summary
from robustsigma import (
    IDG,
    Attributor,
    Classifier,
    ExpectedGradients,
    GuidedIntegratedGradients,
    Identity,
    IntegratedGradients,
    Sigma,
)
from robustsigma.data import Baggage
from robustsigma.data.transforms import Albumentations
from robustsigma.engine.attributors.integrated_gradients import RULES
from robustsigma.lightning.loaders import KeyedDataset, KeySampler, ResumableLoader

_AUGMENT = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "translate_percent": [-0.1, 0.1], "rotate": [-15, 15], "p": 1.0},
]


def _trainable(case: Case) -> Classifier:
    return Classifier(build(case.name, case.scale, case.device).requires_grad_(True), mean=MEAN, std=STD)


def training(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Train a copy of the network in each regime, step by step in turns; return ratios to the plain step.

    The limit of a step is the plain step and the passes of its perturbation, each at the cost of the cheapest pass.
    """
    batch, epochs = case.scale.training, 1 + max(2, repeats)
    source = Baggage(size=case.scale.size, train=batch, val=5, test=5)
    regimes = training_step.regimes(eps=2 / 255, std=0.1, alpha=0.01, max_age=epochs, max_steps=20)
    start = _trainable(case)
    trained = {name: training_step.Trained(start, kind, 0) for name, kind in regimes.items()}
    turns: dict[str, list[tuple[float, float, Passes]]] = {name: [] for name in regimes}
    for epoch in range(epochs):
        (step,) = training_step.batches(source, epoch, argparse.Namespace(batch_size=batch, steps=1))
        before, passes = limit.sample(), {}
        for name, each in trained.items():
            with counted(each.classifier) as passes[name]:
                each.step(step, epoch)
        cost, plain = mean(before, limit.sample()), trained["plain"].seconds[-1]
        for name, each in trained.items() if epoch else ():  # the first epoch warms up and fills the caches
            # The step's own forward pass is counted too; its backward pass has no gradient of the images.
            made = Passes(passes[name].forwards - batch, passes[name].backwards)
            time = each.seconds[-1]
            turns[name].append((time / plain, (plain + cost.of(made)) / time, made))
    return {
        "settings": f"batches of {batch}, {epochs - 1} steps",
        "images": batch,
        "regimes": {
            name: {
                "settings": repr(regimes[name]),
                "times_plain": summary(ratio for ratio, _, _ in found),
                "passes": {
                    kind: sum(getattr(made, kind) for _, _, made in found) / len(found) / batch
                    for kind in ("forwards", "backwards")
                },
                "efficiency": summary(efficiency for _, efficiency, _ in found),
            }
            for name, found in turns.items()
        },
    }


def data(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the cost of an image in each part of the data pipeline, relative to its plain training step.

    Below 1, one process of the pipeline keeps up with the step, if it has a core of its own. Scans are generated once,
    before training.
    """
    batch = case.scale.training
    source = Baggage(size=case.scale.size, train=4 * batch, val=5, test=5)
    trained = training_step.Trained(_trainable(case), Identity(), 0)
    (step,) = training_step.batches(source, 0, argparse.Namespace(batch_size=batch, steps=1))
    trained.step(step, 0)
    sampler = KeySampler(range(source.train), shuffle=True, seed=0)
    loaders = {
        name: ResumableLoader(KeyedDataset(source.split("train"), augment, 0), sampler=sampler, batch_size=batch)
        for name, augment in (("loading", None), ("loading and augmentation", Albumentations(_AUGMENT)))
    }
    seeds = count(1)  # equal scans are cached
    parts: dict[str, tuple[int, Callable[[], Any]]] = {
        "generation": (batch, lambda: replace(source, train=batch, seed=next(seeds)).split("train")),
        **{name: (source.train, lambda each=each: list(each)) for name, each in loaders.items()},
    }
    ratios: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        trained.step(step, 0)
        for name, (images, call) in parts.items():
            ratios[name].append(seconds(call) / images / (trained.seconds[-1] / batch))
    return {
        "settings": f"batches of {batch}; {_AUGMENT}",
        "images": batch,
        "parts": {name: {"of_a_step": summary(values)} for name, values in ratios.items()},
    }


def _walk(case: Case, **changed: int) -> Sigma:
    return replace(walk(case), **{"paths": min(2, case.scale.paths), **changed})


_COSTS: dict[str, tuple[str, Callable[[Case, int], tuple[Attributor, Case]]]] = {
    "SIGMA, paths": ("paths", lambda case, n: (_walk(case, paths=n), case.fewer)),
    "SIGMA, steps": ("steps", lambda case, n: (_walk(case, max_steps=n), case.fewer)),
    "SIGMA, images": ("images", lambda case, n: (_walk(case), case.first(n))),
    "IG, steps": ("steps", lambda case, n: (IntegratedGradients(4 * n), case.fewer)),
    "IG, images": ("images", lambda case, n: (IntegratedGradients(case.scale.steps), case.first(n))),
}
_MEMORY: dict[str, Callable[[Case, int], Attributor]] = {
    "SIGMA": lambda case, n: _walk(case, max_steps=n),
    "IG": lambda case, n: IntegratedGradients(8 * n),
    "IDG": lambda case, n: IDG(8 * n),
    "EG": lambda case, n: ExpectedGradients(8 * n),
    "Guided IG": lambda case, n: GuidedIntegratedGradients(n),
}


def cost_curves(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return, for each curve, the cost at 1, 2, 4 and 8 times the amount of work, in forward passes of the limit.

    The exponent is the slope of log cost over log n: 1 where cost is proportional to n.
    """
    found = {}
    for name, (axis, make) in _COSTS.items():
        at = [n for n in (1, 2, 4, 8, 16) if n <= (len(case.images) if axis == "images" else 8)]
        values: dict[int, list[float]] = {n: [] for n in at}
        for _ in range(repeats):
            for n in at:
                method, few = make(case, n)
                unit = limit.sample().forward
                values[n].append(seconds(lambda m=method, f=few: m(f.classifier, f.images, f.target)) / unit)
        costs = [summary(values[n]) for n in at]
        slope = np.polyfit(np.log(at), np.log([c["median"] for c in costs]), 1)[0] if len(at) > 1 else None
        found[name] = {"axis": axis, "at": at, "costs": costs, "exponent": None if slope is None else float(slope)}
    return {"settings": "cost in forward passes", "curves": found}


def memory_curves(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the peak memory at 1, 2 and 4 times as many steps, in MiB and in passes of a full batch."""
    few = case.first(min(2, len(case.images)))
    batch = few.images[:1].expand(few.classifier.chunk_for(few.images), -1, -1, -1).contiguous()

    def one_pass() -> None:
        with few.classifier.frozen():
            few.classifier.score_and_gradient(batch, few.target[:1].expand(len(batch)))

    one_pass()
    unit = peak(one_pass, case.device)
    found = {}
    for name, make in _MEMORY.items():
        at = [2, 4, 8] if name == "SIGMA" else [4, 8, 16]
        methods = [make(few, n) for n in at]
        peaks = [peak(lambda m=m: m(few.classifier, few.images, few.target), case.device) for m in methods]
        found[name] = {"at": at, "mib": peaks, "passes": [mib / unit for mib in peaks]}
    settings = f"2 images; a pass of {len(batch)} images holds {unit:.1f} MiB"
    return {"settings": settings, "pass_mib": unit, "curves": found}


_CAPTUM = {
    "gauss_legendre": "gausslegendre",
    "midpoint": "riemann_middle",
    "left": "riemann_left",
    "right": "riemann_right",
    "trapezoid": "riemann_trapezoid",
}


def gaps(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return IG's median completeness gap, |sum of values - drop| / |drop|, per number of passes and quadrature rule.

    Captum's is beside it: its passes are those of the values, and a forward pass of both ends for the gap.
    """
    few = case.fewer
    curves: dict[str, dict[str, list[float]]] = {}
    captum = library("captum.attr").IntegratedGradients(few.plain)
    chunk = few.classifier.chunk_for(few.images)

    def add(name: str, passes: Passes, gap: torch.Tensor, drop: torch.Tensor) -> None:
        curve = curves.setdefault(name, {"passes": [], "gap": []})
        curve["passes"].append(passes.total / len(few.images))
        curve["gap"].append(float((gap / drop.abs().clamp(min=1e-6)).median()))

    for rule in RULES:
        for n in (n for n in (2, 4, 8, 16, 32, 64) if n <= 2 * case.scale.steps):
            with counted(few.classifier) as passes:
                result = IntegratedGradients(n, rule)(few.classifier, few.images, few.target)
            add(rule, passes, result.gap(), result.drop)
            if rule in _CAPTUM:
                settings = {"n_steps": n, "method": _CAPTUM[rule], "internal_batch_size": chunk}
                with counted(few.plain) as passes:
                    _, delta = captum.attribute(
                        few.images, target=few.target, return_convergence_delta=True, **settings
                    )
                add(f"captum, {rule}", passes, delta.abs(), result.drop)
    return {"settings": f"{len(few.images)} images, black baseline, logit", "curves": curves}


ROWS: dict[str, Callable[[Case, Limit, int], dict[str, Any]]] = {
    "Training": training,
    "Data": data,
    "Cost-curves": cost_curves,
    "Memory-curves": memory_curves,
    "Gaps": gaps,
}
