"""The plan of an evaluation: its regimes (rows), its conditions (columns), and the settings that bind its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from robustsigma.engine.perturbations import Perturbation
from robustsigma.evaluation.settings import Evaluation
from robustsigma.evaluation.threat_model import minimum_norm
from robustsigma.lightning.training_perturbation import without_cache
from robustsigma.runs.fingerprint import code_of, describe

BASE = "base"
NO_ATTACK, ADAPTIVE, TRANSFER = "none", "adaptive", "transfer"
GIVEN = "given"  # protocol of a model that the user provided


@dataclasses.dataclass(frozen=True)
class Regime:
    """One row of the matrix: a model, and how it is trained.

    Attributes:
        id: unique; its files are named after it.
        name: shown in the report.
        protocol: "none" for the base model of a study, "retrain" or "on_the_fly"; "given" for a model that came as it
            is.
        perturbation: perturbation of its training images, or None.
    """

    id: str
    name: str
    protocol: str
    perturbation: Perturbation | None

    @property
    def retrained(self) -> bool:
        """Whether training went on from the base model."""
        return self.protocol in ("retrain", "on_the_fly")


@dataclasses.dataclass(frozen=True)
class Condition:
    """One column of the matrix: what is done to the test images.

    Attributes:
        id: unique; its files are named after it.
        name: shown in the report.
        attack_setting: "adaptive" for samples made against the model under test, "transfer" for samples made against
            the base model (the first one), "none" where all models see the same images.
        perturbation: perturbation of the test images.
    """

    id: str
    name: str
    attack_setting: str
    perturbation: Perturbation


def regimes(settings: Evaluation) -> list[Regime]:
    """Return the rows; the base model is the first."""
    found = [Regime(BASE, BASE, "none", None)]
    for protocol in ("retrain", "on_the_fly"):
        for name, perturbation in getattr(settings.retraining, protocol).items():
            made = without_cache(perturbation) if protocol == "retrain" else perturbation  # each sample is made once
            found.append(Regime(f"{name}/{protocol}", name, protocol, made))
    return found


def conditions(perturbations: Mapping[str, Perturbation], *, transfer: bool = True) -> list[Condition]:
    """Return the columns: those without an attack, the adaptive ones and, if asked, those of transferred samples.

    A minimum-norm attack is not transferred: its samples lie at the boundary of the network that they were made for.
    """
    every = {name: without_cache(p) for name, p in perturbations.items()}
    attacks = {name: p for name, p in every.items() if p.depends_on_model}
    same = [Condition(name, name, NO_ATTACK, p) for name, p in every.items() if name not in attacks]
    kinds = (ADAPTIVE, TRANSFER) if transfer else (ADAPTIVE,)
    pairs = [(kind, n, p) for kind in kinds for n, p in attacks.items() if kind == ADAPTIVE or not minimum_norm(p)]
    return same + [Condition(f"{name}/{kind}", name, kind, p) for kind, name, p in pairs]


def fingerprint(settings: Evaluation, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything that a folder is bound to, in plain JSON types.

    The settings count, with the weights that the network starts from, the images and labels, and the source of your
    classes among the settings. Seeds may be added later, and other checks may be asked for. What a sweep decides is
    part of the regimes.

    Args:
        settings: settings of the evaluation, resolved.
        allow: dotted paths whose source counts too.
    """
    found = {key: value for key, value in describe(settings).items() if key not in ("seeds", "checks", "sweep")}
    dataset, trained = settings.dataset, not settings.training.epochs
    network = settings.architecture.fingerprint(dataset.shape, len(dataset.classes), trained=trained)
    return {**found, "network": network, "data": dataset.fingerprint(), **code_of(allow, settings)}
