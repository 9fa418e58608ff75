"""robustsigma: attributions turned into hard training samples, and the proof of whether they help."""

from robustsigma.engine.attributors import Attribution, Attributor, IntegratedGradients, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations import (
    FGSM,
    PGD,
    GaussianNoise,
    Identity,
    Mixture,
    PathEnd,
    Perturbation,
    Share,
    SigmaSample,
)

__version__ = "0.1.0"

__all__ = [
    "FGSM",
    "PGD",
    "Attribution",
    "Attributor",
    "Classifier",
    "GaussianNoise",
    "Identity",
    "IntegratedGradients",
    "Mixture",
    "PathEnd",
    "Perturbation",
    "Share",
    "Sigma",
    "SigmaSample",
    "__version__",
]
