"""Perturbations: an image becomes another of the same shape. Training augmentation and evaluation condition alike."""

from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.corruption import CORRUPTIONS, Corruption
from robustsigma.engine.perturbations.fgsm import FGSM, NFGSM
from robustsigma.engine.perturbations.gaussian_noise import GaussianNoise
from robustsigma.engine.perturbations.identity import Identity
from robustsigma.engine.perturbations.mixture import Mixture, Share
from robustsigma.engine.perturbations.path_end import PathEnd
from robustsigma.engine.perturbations.pgd import PGD
from robustsigma.engine.perturbations.sigma_sample import SampleCache, SigmaSample
from robustsigma.engine.perturbations.square import Square
from robustsigma.engine.perturbations.torch_attack import TorchAttack

__all__ = [
    "CORRUPTIONS",
    "FGSM",
    "NFGSM",
    "PGD",
    "Corruption",
    "GaussianNoise",
    "Identity",
    "Mixture",
    "PathEnd",
    "Perturbation",
    "Perturbed",
    "SampleCache",
    "Share",
    "SigmaSample",
    "Square",
    "TorchAttack",
]
