"""Perturbations: each turns an image into another of the same shape, as training augmentation or test condition."""

from robustsigma.engine.perturbations.attribution_masked import AttributionMasked
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.corruption import CORRUPTIONS, Corruption
from robustsigma.engine.perturbations.fgsm import FGSM, NFGSM
from robustsigma.engine.perturbations.mixture import Mixture, MixtureComponent
from robustsigma.engine.perturbations.model_free import GaussianNoise, Identity
from robustsigma.engine.perturbations.path_samples import PathEnd, SampleCache, SigmaSample
from robustsigma.engine.perturbations.pgd import PGD
from robustsigma.engine.perturbations.square import Square
from robustsigma.engine.perturbations.torch_attack import TorchAttack

__all__ = [
    "CORRUPTIONS",
    "FGSM",
    "NFGSM",
    "PGD",
    "AttributionMasked",
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
]
