"""The cost of each training in plain steps. All are timed side by side, so that other work on the machine hits all."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from training_step import Trained, batches

from robustsigma import Classifier, Mixture, MixtureComponent
from robustsigma.data.dataset_spec import DatasetSpec
from robustsigma.engine import noise
from study.setup import CLEAN, Plan


@dataclass(frozen=True)
class Cost:
    """The cost of one training.

    Attributes:
        ratio: time of a step divided by that of a plain step, averaged over the epochs of the training.
        once: cost of the samples made before the training, in plain steps.
    """

    ratio: float
    once: float = 0.0

    def of(self, epochs: int, steps: int) -> float:
        """Return the cost of `epochs` epochs with `steps` steps each, in plain steps."""
        return self.once + self.ratio * epochs * steps

    def epochs(self, budget: float, steps: int) -> int:
        """Return how many epochs of `steps` steps fit into a budget of plain steps."""
        return int((budget - self.once) / (self.ratio * steps) + 1e-9)


def measure(
    classifier: Classifier, plans: Sequence[Plan], source: DatasetSpec, images: int, batch_size: int, steps: int
) -> dict[str, Cost]:
    """Return the cost of each training by its name.

    Every training runs its number of epochs over a few batches, in turns, step by step. Costs are means, not medians: a
    sample cache that is empty at first makes steps unequal.

    Args:
        classifier: the base model.
        plans: trainings, with the clean one among them.
        source: the dataset.
        images: number of training images.
        batch_size: batch size of a step.
        steps: largest number of timed batches per epoch.
    """
    size = min(batch_size, images)
    part = argparse.Namespace(steps=min(steps, images // size), batch_size=size)
    stepped = {plan.name: Trained(classifier, _shared(plan), 0) for plan in plans if not plan.training.samples}
    made: dict[str, list[float]] = {plan.name: [] for plan in plans if plan.training.samples}
    for epoch in range(max(plan.training.epochs for plan in plans)):
        for batch in batches(source, epoch, part):
            for each in stepped.values():
                each.step(batch, epoch)
            for plan in plans:
                if plan.name in made:
                    seeds = noise.image_seeds(0, "train", plan.name, 0, batch.indices)
                    start = time.perf_counter()
                    plan.training.perturbation(classifier, batch.images, batch.labels, seed=seeds, return_info="search")
                    made[plan.name].append(time.perf_counter() - start)
    plain = mean(stepped[CLEAN].seconds)
    found = {name: Cost(mean(each.seconds) / plain) for name, each in stepped.items()}
    samples = {plan.name: plan.training.samples for plan in plans}
    return found | {name: Cost(1.0, mean(each) / plain * samples[name] / size) for name, each in made.items()}


def _shared(plan: Plan) -> Mixture:
    return Mixture([MixtureComponent(plan.training.perturbation, plan.training.share)])
