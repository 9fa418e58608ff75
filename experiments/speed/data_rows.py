"""Whether the data keep up with the training step: generation, loading and augmentation of the embedded scans."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from experiments import training_step
from experiments.speed.clock import summary, timed
from experiments.speed.limit import Limit
from experiments.speed.nets import MEAN, STD, Case, build
from robustsigma import Classifier, Identity
from robustsigma.data import Baggage
from robustsigma.data.loading import KeyedDataset, KeySampler, loader
from robustsigma.data.source import Batch
from robustsigma.data.transforms import Albumentations

_AUGMENT = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "translate_percent": [-0.1, 0.1], "rotate": [-15, 15], "p": 1.0},
]


def _loading(source: Baggage, augment: Albumentations | None, batch: int) -> Callable[[], list[Batch]]:
    """Return a call that goes through an epoch in this process."""
    count = source.train
    sampler = KeySampler(range(count), shuffle=True, seed=0, rank=0, world=1)
    found = loader(KeyedDataset(source.split("train"), augment, 0), sampler, batch, 0)
    return lambda: list(found)


def measure(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return what an image costs in each part of the pipeline, as a share of what a plain training step costs it.

    Below 1, one process of the pipeline keeps up with the step, beside which it runs if it has a core of its own.
    Generation happens once, before training. Each repeat generates other scans, since equal ones are kept.
    """
    batch = case.scale.training
    source = Baggage(size=case.scale.size, train=4 * batch, val=5, test=5)
    net = build(case.name, case.scale, case.device).requires_grad_(True)
    trained = training_step.Trained(Classifier(net, mean=MEAN, std=STD), Identity(), 0)
    step = training_step.batches(source, 0, argparse.Namespace(batch_size=batch, steps=1))[0]
    trained.step(step, 0)
    calls = {
        "loading": _loading(source, None, batch),
        "loading and augmentation": _loading(source, Albumentations(_AUGMENT), batch),
    }
    ratios: dict[str, list[float]] = {name: [] for name in ("generation", *calls)}
    for repeat in range(repeats):
        trained.step(step, 0)
        plain = trained.seconds[-1] / batch
        other = Baggage(size=case.scale.size, train=batch, val=5, test=5, seed=1 + repeat)
        ratios["generation"].append(timed(lambda other=other: other.split("train"), case.device)[0] / batch / plain)
        for name, call in calls.items():
            ratios[name].append(timed(call, case.device)[0] / source.train / plain)
    return {
        "settings": f"batches of {batch}; {_AUGMENT}",
        "images": batch,
        "parts": {name: {"of_a_step": summary(values)} for name, values in ratios.items()},
    }
