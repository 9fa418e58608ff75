"""Perturbations: each turns an image into another of the same shape, as training augmentation or test condition."""

from robustsigma.engine.perturbations.apgd import APGD
from robustsigma.engine.perturbations.at_radii import attack_at_radii
from robustsigma.engine.perturbations.attack_state import AttackState
from robustsigma.engine.perturbations.attribution_masked import AttributionMasked
from robustsigma.engine.perturbations.autoattack import AutoAttack
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.corruption import CORRUPTIONS, Corruption
from robustsigma.engine.perturbations.fab import FAB
from robustsigma.engine.perturbations.fgsm import FGSM, NFGSM
from robustsigma.engine.perturbations.fmn import FMN
from robustsigma.engine.perturbations.in_parts import AttackCost, AttackInParts
from robustsigma.engine.perturbations.mixture import Mixture, MixtureComponent
from robustsigma.engine.perturbations.model_free import GaussianNoise, Identity
from robustsigma.engine.perturbations.path_samples import PathEnd, SampleCache, SigmaSample
from robustsigma.engine.perturbations.pgd import PGD
from robustsigma.engine.perturbations.square import Square
from robustsigma.engine.perturbations.torch_attack import TorchAttack

__all__ = [
    "APGD",
    "CORRUPTIONS",
    "FAB",
    "FGSM",
    "FMN",
    "NFGSM",
    "PGD",
    "AttackCost",
    "AttackInParts",
    "AttackState",
    "AttributionMasked",
    "AutoAttack",
    "Corruption",
    "GaussianNoise",
    "Identity",
    "Mixture",
    "MixtureComponent",
    "PathEnd",
    "Perturbation",
    "Perturbed",
    "SampleCache",
    "SigmaSample",
    "Square",
    "TorchAttack",
    "attack_at_radii",
]
