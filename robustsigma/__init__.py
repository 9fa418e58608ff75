"""robustsigma: attributions turned into hard training samples, and the proof of whether they help."""

from robustsigma.engine.attributors import (
    AGI,
    IDG,
    IG2,
    AttentionRollout,
    Attribution,
    Attributor,
    CrediblePath,
    ExpectedGradients,
    Gradient,
    GuidedIntegratedGradients,
    IntegratedGradients,
    LeftIntegratedGradients,
    RandomAttribution,
    Sigma,
)
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
    "AGI",
    "FGSM",
    "IDG",
    "IG2",
    "PGD",
    "AttentionRollout",
    "Attribution",
    "Attributor",
    "Classifier",
    "CrediblePath",
    "ExpectedGradients",
    "GaussianNoise",
    "Gradient",
    "GuidedIntegratedGradients",
    "Identity",
    "IntegratedGradients",
    "LeftIntegratedGradients",
    "Mixture",
    "PathEnd",
    "Perturbation",
    "RandomAttribution",
    "Share",
    "Sigma",
    "SigmaSample",
    "__version__",
]
