"""Perturbations: an image becomes another of the same shape. Training augmentation and evaluation condition alike."""

from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.gaussian_noise import GaussianNoise
from robustsigma.engine.perturbations.gradient_sign import FGSM, PGD
from robustsigma.engine.perturbations.identity import Identity
from robustsigma.engine.perturbations.mixture import Mixture, Share
from robustsigma.engine.perturbations.path_end import PathEnd
from robustsigma.engine.perturbations.sigma_sample import SigmaSample

__all__ = [
    "FGSM",
    "PGD",
    "GaussianNoise",
    "Identity",
    "Mixture",
    "PathEnd",
    "Perturbation",
    "Perturbed",
    "Share",
    "SigmaSample",
]
