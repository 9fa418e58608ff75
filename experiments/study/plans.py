"""Which trainings the study compares, each a row of one of its three tables."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, replace

from robustsigma import FGSM, PGD, GaussianNoise, Identity, Mixture, Perturbation, Share, Sigma, SigmaSample
from robustsigma.engine.perturbations.sigma_sample import Bank
from robustsigma.evaluation import Evaluation
from robustsigma.evaluation.run import Regime
from robustsigma.training.sample_labels import SampleLabels

SAMPLES, TIME, VARIATIONS = "samples", "time", "variations"
CLEAN, GAUSSIAN, REFERENCE, TRANSFER = "clean", "gaussian", "sigma", "sigma_transfer"
MIXTURE, WITHOUT_SIGMA = "mixture", "mixture_without_sigma"
WITH_SIGMA = (TRANSFER, REFERENCE, "sigma_bank", MIXTURE)
ON_THE_FLY, MADE_ONCE = "on_the_fly", "retrain"


@dataclass(frozen=True)
class Plan(Regime):
    """One training that starts from the base model.

    Attributes:
        epochs: passes over the training images, and those that were added.
        share: of the images that are augmented.
        labels: of SIGMA samples.
    """

    epochs: int
    share: float
    labels: SampleLabels = field(default_factory=SampleLabels)

    @property
    def added(self) -> bool:
        """Whether the augmented images are made once against the base model, and added, as in the paper."""
        return self.protocol == MADE_ONCE

    def extra(self, images: int) -> int:
        """Return how many images are added to so many of training, for the share that is augmented."""
        return round(images * self.share / (1 - self.share)) if self.added else 0

    def steps(self, images: int, batch_size: int) -> int:
        """Return the optimiser's steps in an epoch over so many training images."""
        return math.ceil((images + self.extra(images)) / batch_size)

    def within(self, settings: Evaluation, images: int) -> Evaluation:
        """Return the settings of an evaluation under which this training is made, over so many training images."""
        plan = replace(settings.retraining, epochs=self.epochs, share=self.share, samples=max(1, self.extra(images)))
        return replace(settings, retraining=plan)


@dataclass(frozen=True)
class Training:
    """What the trainings of the study have in common.

    Attributes:
        epochs: of those on the fly. Those with added images have as many steps: `epochs` times 1 - `share` is whole.
        share: of the images that are augmented.
        walk: of SIGMA samples made on the fly.
        long_walk: of those made once.
        eps: of FGSM and PGD.
        pgd_steps: of PGD.
        max_age: of the bank.
    """

    epochs: int
    share: float
    walk: Sigma
    long_walk: Sigma
    eps: float
    pgd_steps: int
    max_age: int

    def __post_init__(self) -> None:
        if not math.isclose(self.epochs * (1 - self.share) % 1, 0, abs_tol=1e-9):
            raise ValueError(f"epochs: expected a whole number after times {1 - self.share:g}, got {self.epochs}")


def by_samples(of: Training, std: float) -> list[Plan]:
    """Return the first table: as many steps and as many augmented images in each; `std` of the Gaussian noise."""
    gaussian, fgsm = GaussianNoise(std), FGSM(of.eps, random_start=True)
    banked = SigmaSample(of.walk, bank=Bank(max_age=of.max_age))
    live: dict[str, Perturbation] = {
        CLEAN: Identity(),
        GAUSSIAN: gaussian,
        "fgsm": fgsm,
        "pgd": PGD(of.eps, steps=of.pgd_steps),
        REFERENCE: SigmaSample(of.walk),
        "sigma_bank": banked,
        MIXTURE: Mixture([Share(part, 1 / 3) for part in (gaussian, fgsm, banked)]),
        WITHOUT_SIGMA: Mixture([Share(part, 1 / 2) for part in (gaussian, fgsm)]),
    }
    plans = [Plan(f"{SAMPLES}/{name}", name, ON_THE_FLY, p, of.epochs, of.share) for name, p in live.items()]
    once = round(of.epochs * (1 - of.share))
    made_once = Plan(f"{SAMPLES}/{TRANSFER}", TRANSFER, MADE_ONCE, SigmaSample(of.long_walk), once, of.share)
    return [*plans[:4], made_once, *plans[4:]]


def by_time(plans: list[Plan], epochs: dict[str, int]) -> list[Plan]:
    """Return the second table: the trainings of the first with other numbers of epochs, by their names.

    A training that keeps its number is that of the first table, and is not made again.
    """
    return [
        plan if epochs[plan.name] == plan.epochs else replace(plan, id=f"{TIME}/{plan.name}", epochs=epochs[plan.name])
        for plan in plans
    ]


def variations(of: Training) -> list[Plan]:
    """Return the third table: SIGMA on the fly with one part changed in each."""
    walk, labels = of.walk, SampleLabels()
    shares = [(f"share {share:g}", walk, share, labels) for share in (0.1, 0.5)]
    walks = [
        (f"alpha {0.3 * walk.alpha:g}", replace(walk, alpha=0.3 * walk.alpha)),
        (f"alpha {3 * walk.alpha:g}", replace(walk, alpha=3 * walk.alpha)),
        (f"beta {0.3 * walk.beta:g}", replace(walk, beta=0.3 * walk.beta)),
        (f"beta {3 * walk.beta:g}", replace(walk, beta=3 * walk.beta)),
        (f"max_steps {walk.max_steps // 4}", replace(walk, max_steps=walk.max_steps // 4)),
        (f"max_steps {2 * walk.max_steps}", replace(walk, max_steps=2 * walk.max_steps)),
        # Each objective with steps that suit it (results/sigma_settings.json): a probability's slope is far smaller.
        ("objective prob", replace(walk, objective="prob", alpha=0.1, beta=0.5)),
        ("objective log_prob", replace(walk, objective="log_prob", alpha=0.03, beta=0.1)),
    ]
    labelled = [
        ("labels smoothed", SampleLabels("smoothed")),
        ("labels uniform", SampleLabels("uniform")),
        ("labels uniform, weight 0.2", SampleLabels("uniform", weight=0.2)),
    ]
    rows = [
        *shares,
        *((n, w, of.share, labels) for n, w in walks),
        *((n, walk, of.share, kept) for n, kept in labelled),
    ]
    return [
        Plan(f"{VARIATIONS}/{name.replace(', ', '_').replace(' ', '_')}", name, ON_THE_FLY, SigmaSample(w), of.epochs,
             share, kept)
        for name, w, share, kept in rows
    ]  # fmt: skip


def described(plan: Plan) -> str:
    """Return what a training does, in a line."""
    how = "made once against the base model and added" if plan.added else "made on the fly"
    labels = "" if plan.labels == SampleLabels() else f", labels {dataclasses.asdict(plan.labels)}"
    return f"{plan.epochs} epochs, {plan.share:.0%} {how}: {plan.perturbation!r}{labels}"
