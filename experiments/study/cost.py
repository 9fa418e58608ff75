"""What each training costs, in plain steps: timed side by side, so that the machine's other work falls on all alike."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from training_step import Trained, batches

from robustsigma import Classifier, Mixture, Share
from robustsigma.data.source import Batch, Source
from robustsigma.engine import noise
from study.plans import CLEAN, Plan


@dataclass(frozen=True)
class Cost:
    """Of one training.

    Attributes:
        ratio: a step's time to that of a plain step, mean over the epochs of the training.
        once: what is made before the training, in plain steps.
    """

    ratio: float
    once: float = 0.0

    def of(self, epochs: int, steps: int) -> float:
        """Return the cost of so many epochs of so many steps, in plain steps."""
        return self.once + self.ratio * epochs * steps

    def epochs(self, budget: float, steps: int) -> int:
        """Return how many epochs of so many steps fit into a budget of plain steps."""
        return int((budget - self.once) / (self.ratio * steps) + 1e-9)


def measure(
    classifier: Classifier, plans: list[Plan], source: Source, images: int, batch_size: int, steps: int
) -> dict[str, Cost]:
    """Return the cost of each training by its name.

    Every training goes its number of epochs, over a few batches only, one step of each after the other. The sum over
    all steps counts, not their median: a bank that is empty at first makes its steps unequal.

    Args:
        classifier: the base model.
        plans: the trainings, the clean one among them.
        source: the dataset.
        images: of training.
        batch_size: of a step.
        steps: batches of an epoch that are timed, at most.
    """
    size = min(batch_size, images)
    part = argparse.Namespace(steps=min(steps, images // size), batch_size=size)
    trained = {plan.name: Trained(classifier, _of(plan), 0) for plan in plans if not plan.added}
    once: dict[str, list[float]] = {plan.name: [] for plan in plans if plan.added}
    for epoch in range(max(plan.epochs for plan in plans)):
        for batch in batches(source, epoch, part):
            for each in trained.values():
                each.step(batch, epoch)
            for plan in plans:
                if plan.added:
                    once[plan.name].append(_seconds(plan, classifier, batch))
    plain = sum(trained[CLEAN].seconds) / len(trained[CLEAN].seconds)
    found = {name: Cost(sum(each.seconds) / len(each.seconds) / plain) for name, each in trained.items()}
    for plan in plans:
        if plan.added:
            mean = sum(once[plan.name]) / len(once[plan.name])
            found[plan.name] = Cost(1.0, mean / plain * plan.extra(images) / size)
    return found


def _of(plan: Plan) -> Mixture:
    assert plan.perturbation is not None
    return Mixture([Share(plan.perturbation, plan.share)])


def _seconds(plan: Plan, classifier: Classifier, batch: Batch) -> float:
    assert plan.perturbation is not None
    seeds = noise.image_seeds(0, "train", plan.name, 0, batch.indices)
    start = time.perf_counter()
    plan.perturbation.apply(classifier, batch.images, batch.labels, seed=seeds)
    return time.perf_counter() - start
