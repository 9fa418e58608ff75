"""The training step under each regime, in units of the plain step, and of what its passes must cost."""

from __future__ import annotations

import argparse
from typing import Any

from experiments import training_step
from experiments.speed.clock import summary
from experiments.speed.limit import Limit, mean
from experiments.speed.nets import MEAN, STD, Case, build
from experiments.speed.passes import Passes, counted
from robustsigma import Classifier
from robustsigma.data import Baggage

_WALK = 20


def measure(case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Train one copy of the network under each regime, step by step in turns; return ratios to the plain step.

    The limit of a step is the plain step and the passes of its perturbation, each at the cost of the cheapest pass.
    """
    batch, epochs = case.scale.training, 1 + max(2, repeats)
    options = argparse.Namespace(batch_size=batch, steps=1)
    source = Baggage(size=case.scale.size, train=batch, val=5, test=5)
    kinds = training_step.regimes(eps=2 / 255, std=0.1, alpha=0.01, max_age=epochs, max_steps=_WALK)
    net = build(case.name, case.scale, case.device).requires_grad_(True)
    start = Classifier(net, mean=MEAN, std=STD)
    trained = {name: training_step.Trained(start, kind, 0) for name, kind in kinds.items()}
    ratios: dict[str, list[float]] = {name: [] for name in kinds}
    efficiencies: dict[str, list[float]] = {name: [] for name in kinds}
    extra: dict[str, Passes] = {name: Passes() for name in kinds}
    for epoch in range(epochs):
        for step in training_step.batches(source, epoch, options):
            costs, passes = [limit.sample()], {}
            for name, each in trained.items():
                with counted(each.classifier) as passes[name]:
                    each.step(step, epoch)
            costs.append(limit.sample())
            if epoch == 0:  # warms up, and fills the banks
                continue
            plain = trained["plain"].seconds[-1]
            for name, each in trained.items():
                # The step's own pass has no gradient of the images; its forward pass is counted.
                made = Passes(passes[name].forwards - batch, passes[name].backwards)
                ratios[name].append(each.seconds[-1] / plain)
                efficiencies[name].append((plain + mean(costs).of(made)) / each.seconds[-1])
                extra[name].forwards += made.forwards / (epochs - 1)
                extra[name].backwards += made.backwards / (epochs - 1)
    return {
        "settings": f"batches of {batch}, {len(ratios['plain'])} steps",
        "images": batch,
        "regimes": {
            name: {
                "settings": repr(kinds[name]),
                "times_plain": summary(ratios[name]),
                "passes": extra[name].per(batch),
                "efficiency": summary(efficiencies[name]),
            }
            for name in kinds
        },
    }
