"""AutoAttack, the evaluation that the field compares by."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.checks import Flag
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.apgd import APGD
from robustsigma.engine.perturbations.attack_state import AttackState
from robustsigma.engine.perturbations.ball import check_radius
from robustsigma.engine.perturbations.fab import FAB
from robustsigma.engine.perturbations.in_parts import AttackCost, AttackInParts
from robustsigma.engine.perturbations.projections import Norm
from robustsigma.engine.perturbations.square import Square

Version = Literal["standard", "plus", "rand"]
_STEPS, _QUERIES, _EOT = 100, 5000, 20
_BETTER = 0.002  # fraction of the images by which the search may lower the accuracy without a flag


@dataclass(frozen=True)
class AutoAttack(AttackInParts):
    """AutoAttack (Croce and Hein, 2020): attacks one after another, each on the images that are still classified right.

    - "standard": APGD on the cross-entropy, APGD on the targeted difference of logits ratio, targeted FAB, and Square;
      9 targets. In the L1 norm APGD starts in wider balls, from 5 random starts or at 5 targets.
    - "plus": APGD on the cross-entropy and on the difference of logits ratio and FAB, 5 starts each; then Square, and
      targeted APGD and FAB.
    - "rand", for networks with random outputs: APGD on both losses, with gradients of 20 passes.

    An image that withstands all of them ends at its point of highest cross-entropy.

    Args:
        eps: radius in pixel units of [0, 1].
        norm: "linf", "l2" or "l1".
        version: "standard", "plus" or "rand".
        steps: number of steps of APGD and FAB. Results of other than 100 are not those that papers report.
        queries: number of forward passes of Square; other than 5000 likewise.

    Example:
        >>> attack = AutoAttack(8 / 255)
        >>> attack.cost(classes=10).minutes(classifier, images[:64], count=10_000)
        >>> info = attack(classifier, images, labels, seed=0, return_info=True)
        >>> attack.accuracies(info.found_by), attack.flags(info.found_by, info.zero_gradient, classes=10)
    """

    eps: float = 8 / 255
    norm: Norm = "linf"
    version: Version = "standard"
    steps: int = _STEPS
    queries: int = _QUERIES

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        validation.integer("steps", self.steps, 1)
        validation.integer("queries", self.queries, 1)

    @property
    def attacks(self) -> dict[str, APGD | FAB | Square]:
        """The attacks by name, in their order."""
        eps, norm = 0.0, self.norm  # the radius is the state's
        ce, dlr, aimed = (APGD(eps, norm, loss, self.steps) for loss in ("ce", "dlr", "dlr-targeted"))
        if self.version == "rand":
            return {f"apgd-{a.loss}": APGD(eps, norm, a.loss, self.steps, eot=_EOT) for a in (ce, dlr)}
        square = Square(eps, self.queries, norm, rescale=False)
        fab = FAB(eps, norm, self.steps)
        if self.version == "plus":
            ce, dlr = (APGD(eps, norm, a.loss, self.steps, restarts=5) for a in (ce, dlr))
            whole = FAB(eps, norm, self.steps, restarts=5, targeted=False)
            first: dict[str, APGD | FAB | Square] = {"apgd-ce": ce, "apgd-dlr": dlr, "fab": whole, "square": square}
            return {**first, "apgd-t": aimed, "fab-t": fab}
        if norm == "l1":
            ce = APGD(eps, norm, "ce", self.steps, restarts=5, wide_start=True)
            aimed = APGD(eps, norm, "dlr-targeted", self.steps, targets=5, wide_start=True)
        return {"apgd-ce": ce, "apgd-t": aimed, "fab-t": fab, "square": square}

    def parts(self, classes: int) -> int:
        """Return the number of parts of all attacks."""
        return sum(attack.parts(classes) for attack in self.attacks.values())

    def cost(self, classes: int) -> AttackCost:
        """Return the most passes for an image; say it before a run with `AttackCost.minutes`."""
        costs = [attack.cost(classes) for attack in self.attacks.values()]
        # One clean pass for all; against random outputs another pass decides about what each attack found.
        more = 1 if self.version == "rand" else 1 - len(costs)
        return AttackCost(more + sum(each.forwards for each in costs), sum(each.backwards for each in costs))

    def run(self, part: int, classifier: Classifier, state: AttackState) -> None:
        """Run one part of one attack."""
        each = [
            (number, name, attack, own)
            for number, (name, attack) in enumerate(self.attacks.items(), 1)
            for own in range(attack.parts(state.logits.shape[1]))
        ]
        number, state.name, attack, own = each[part]
        before = state.left()
        attack.run(own, classifier, state)
        fallen = before[state.found_by[before] >= 0]
        if self.version == "rand" and len(fallen):  # one random pass may be wrong by chance: another one decides
            wrong = classifier.logits(state.found[fallen]).argmax(1) != state.labels[fallen]
            state.count(fallen, 1)
            state.found_by[fallen[~wrong]] = -1
            fallen = fallen[wrong]
        state.found_by[fallen] = number

    def accuracies(self, found_by: Tensor) -> dict[str, float]:
        """Return the accuracy on clean images and after each attack, from the results of the images that count."""
        found = torch.as_tensor(found_by)
        after = [float(((found < 0) | (found > n)).double().mean()) for n in range(len(self.attacks) + 1)]
        return dict(zip(("clean", *self.attacks), after, strict=True))

    def flags(self, found_by: Tensor, zero_gradient: Tensor, classes: int) -> list[Flag]:
        """Return the reference's warnings that need the attack's results, and one of weaker settings.

        `inspect_classifier` gives the other two: outputs that are random, or probabilities.

        Args:
            found_by: (N,) of `Perturbed`, as many images as were attacked.
            zero_gradient: (N,) of `Perturbed`.
            classes: number of classes of the network.
        """
        found = []
        aimed = self.version != "rand"
        least = 1 + max(a.targets for a in self.attacks.values() if not isinstance(a, Square)) if aimed else 3
        if classes < least:
            other = ", with another difference of logits ratio" if classes < (4 if aimed else 3) else ""
            message = f"AutoAttack is defined for {least} classes or more. It aims at all {classes}{other}."
            found.append(Flag("few_classes", message))
        dead = int(torch.as_tensor(zero_gradient).sum())
        if dead:
            message = f"The difference of logits has no gradient at {dead} images: gradients may be masked."
            found.append(Flag("zero_gradient", message))
        accuracies = list(self.accuracies(found_by).items())
        for (_, before), (name, after) in pairwise(accuracies):
            if name == "square" and before - after > _BETTER + 1e-9:
                message = (
                    f"The gradient-free search lowered the accuracy by {100 * (before - after):.1f} points after the "
                    "gradient attacks: gradients may be masked. Use more queries, or an attack made for this network."
                )
                found.append(Flag("search_is_better", message))
        if (self.steps, self.queries) != (_STEPS, _QUERIES):
            message = f"AutoAttack with {self.steps} steps and {self.queries} queries is not the standard one."
            found.append(Flag("not_standard", message))
        return found
