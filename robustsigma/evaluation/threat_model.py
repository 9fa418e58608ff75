"""Threat models of conditions: the allowed change of an image, the attacker's knowledge and goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robustsigma.engine.perturbations import (
    FAB,
    FMN,
    PGD,
    AttributionMasked,
    AutoAttack,
    Identity,
    Perturbation,
    SigmaSample,
    Square,
    TorchAttack,
)
from robustsigma.engine.perturbations.projections import Norm
from robustsigma.runs.fingerprint import describe

LINF, L2, L1 = "L\u221e", "L2", "L1"
UNBOUNDED = "unbounded"
_BLACK_BOX = ("Square", "SPSA", "Pixle", "OnePixel")  # of torchattacks: they ask the model for outputs alone
_NEAR = 0.01  # of a 255th: what rounding to four digits leaves
_KNOWN = {"linf": LINF, "l2": L2, "l1": L1}


@dataclass(frozen=True)
class ThreatModel:
    """Constraints, knowledge and goal of an attacker.

    Attributes:
        norm: in which the change is bounded, "unbounded", or None if that is unknown or nothing is attacked.
        eps: its bound, in pixel units of [0, 1], or None.
        knowledge: knowledge of the model, in words.
        goal: goal of the attack, in words.
    """

    norm: str | None
    eps: float | None
    knowledge: str
    goal: str


def ball(perturbation: Perturbation) -> tuple[str, float] | None:
    """Return norm and radius of the ball that a perturbation stays in, or None where its settings name none."""
    found = perturbation.bound if perturbation.depends_on_model else None
    if found is None:
        return None
    norm, eps = found
    return _KNOWN.get(norm, norm), _levels(eps)


def _levels(eps: float) -> float:
    """Return a radius, as so many 255ths where it is written as near to them as 0.0314 is to 8/255."""
    levels = round(255 * eps)
    return levels / 255 if abs(255 * eps - levels) < _NEAR else float(eps)


def threat_model(perturbation: Perturbation, attack_setting: str) -> ThreatModel:
    """Return the threat model of a condition.

    Args:
        perturbation: perturbation of the test images.
        attack_setting: "none", "adaptive" or "transfer".
    """
    norm, eps = ball(perturbation) or (None, None)
    if not perturbation.depends_on_model:
        goal = "none: the image itself" if isinstance(perturbation, Identity) else "none: not aimed at a model"
        return ThreatModel(norm, eps, "none", goal)
    model = "the base model alone" if attack_setting == "transfer" else "the model under test"
    knowledge = f"weights of {model}" if uses_gradients(perturbation) else f"outputs of {model}, no gradients"
    if isinstance(perturbation, SigmaSample):
        goal = f"confidence in the label of at most {perturbation.sigma.epsilon:g}"
        return ThreatModel(UNBOUNDED, None, knowledge, goal)
    aimed = perturbation.targeted if isinstance(perturbation, PGD) else None
    if aimed is not None:
        return ThreatModel(norm, eps, knowledge, f"a wrong class, chosen: {aimed}")
    nearest = minimum_norm(perturbation)
    if nearest is not None:
        return ThreatModel(_KNOWN[nearest], None, knowledge, "any wrong class, by the smallest change")
    return ThreatModel(norm, eps, knowledge, "any wrong class")


def restricted(perturbation: Perturbation) -> bool:
    """Return whether an attack looks for errors in a part of its ball: toward chosen classes, or in chosen pixels."""
    aimed = isinstance(perturbation, PGD) and perturbation.targeted is not None
    return aimed or isinstance(perturbation, AttributionMasked)


def minimum_norm(perturbation: Perturbation) -> Norm | None:
    """Return the norm in which a minimum-norm attack looks for the nearest error; None for other perturbations."""
    nearest = isinstance(perturbation, FMN) or (isinstance(perturbation, FAB) and perturbation.eps is None)
    return perturbation.norm if nearest else None  # type: ignore[attr-defined]


def uses_eot(perturbation: Perturbation) -> bool:
    """Return whether an attack averages over the random outputs of a network (EOT)."""
    if isinstance(perturbation, TorchAttack):
        return perturbation.name.startswith("EOT") or perturbation.arguments.get("version") == "rand"
    if isinstance(perturbation, AutoAttack):
        return perturbation.version == "rand"
    return int(getattr(perturbation, "eot", 1)) > 1


def uses_gradients(perturbation: Perturbation) -> bool:
    """Return whether a condition that depends on the model follows its gradients."""
    if isinstance(perturbation, TorchAttack):
        return perturbation.name not in _BLACK_BOX
    return perturbation.depends_on_model and not isinstance(perturbation, (SigmaSample, Square))


def parameters(perturbation: Perturbation) -> dict[str, Any]:
    """Return every hyper-parameter by name, in plain JSON types, defaults as the numbers that they stand for."""
    found = describe(perturbation)
    if isinstance(perturbation, PGD) and perturbation.step_size is None:
        found["step_size"] = step_size(perturbation)
    return {"attack": found.pop("class"), **found}


def step_size(attack: PGD) -> float:
    """Return the size of each step of an attack."""
    if attack.step_size is not None:
        return attack.step_size
    return attack.eps / 4 if attack.objective == "kl" else 2.5 * attack.eps / attack.steps
