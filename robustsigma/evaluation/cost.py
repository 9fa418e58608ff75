"""What attacks in parts, such as AutoAttack, will take at most: said before they run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from torch import Tensor

from robustsigma.engine.classifier import Classifier
from robustsigma.engine.global_rng import temporary_seed
from robustsigma.engine.perturbations import AttackInParts
from robustsigma.evaluation.plan import ADAPTIVE, Condition
from robustsigma.report import text


def cost_lines(
    conditions: Iterable[Condition], models: Collection[Classifier], images: Tensor, count: int | None, classes: int
) -> Iterator[str]:
    """Yield a line for each attack in parts, with its passes and how long it takes at most.

    Args:
        conditions: conditions that will be run; only adaptive ones cost passes.
        models: that are attacked.
        images: a batch, on which passes are timed.
        count: number of images that will be attacked, or None if that is unknown.
        classes: number of classes.
    """
    for condition in conditions:
        attack = condition.perturbation
        if condition.attack_setting != ADAPTIVE or not isinstance(attack, AttackInParts):
            continue
        cost = attack.cost(classes)
        with temporary_seed(0):  # timing leaves the random numbers of the run as they are
            minutes = sum(cost.minutes(each, images.to(each.mean.device), count or len(images)) for each in models)
        what = text.count(count or len(images), "image") + (f" and {len(models)} models" if len(models) > 1 else "")
        yield (
            f"{condition.name}: at most {cost.forwards:,} forward and {cost.backwards:,} backward passes per image, "
            f"which take at most {text.duration(60 * minutes)} for {what}."
        )
