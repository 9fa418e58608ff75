"""robustsigma turns attributions into hard training samples and measures whether they make a classifier more robust.

Names and subpackages are imported when they are first used, so `import robustsigma` is cheap.
"""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma import benchmark, cli, data, engine, evaluation, lightning, models, report, runs
    from robustsigma.engine.attributors import (
        AGI,
        IDG,
        IDGI,
        IG2,
        SIG,
        AttentionAttribution,
        AttentionRollout,
        Attribution,
        Attributor,
        BlurIG,
        CrediblePath,
        ExpectedGradients,
        Gradient,
        GuidedIntegratedGradients,
        InputXGradient,
        IntegratedGradients,
        LeftIntegratedGradients,
        LeGrad,
        RandomAttribution,
        Sigma,
        SmoothGrad,
    )
    from robustsigma.engine.classifier import Classifier
    from robustsigma.engine.perturbations import (
        FGSM,
        NFGSM,
        PGD,
        AttributionMasked,
        Corruption,
        GaussianNoise,
        Identity,
        Mixture,
        MixtureComponent,
        PathEnd,
        Perturbation,
        SampleCache,
        SigmaSample,
        Square,
        TorchAttack,
    )

__version__ = "0.2.0"

_MODULES = {
    "robustsigma.engine.attributors": (
        *("AGI", "IDG", "IDGI", "IG2", "SIG", "AttentionAttribution", "AttentionRollout", "Attribution", "Attributor"),
        *("BlurIG", "CrediblePath", "ExpectedGradients", "Gradient", "GuidedIntegratedGradients", "InputXGradient"),
        *("IntegratedGradients", "LeGrad", "LeftIntegratedGradients", "RandomAttribution", "Sigma", "SmoothGrad"),
    ),
    "robustsigma.engine.classifier": ("Classifier",),
    "robustsigma.engine.perturbations": (
        *("FGSM", "NFGSM", "PGD", "AttributionMasked", "Corruption", "GaussianNoise", "Identity", "Mixture"),
        *("MixtureComponent", "PathEnd", "Perturbation", "SampleCache", "SigmaSample", "Square", "TorchAttack"),
    ),
}

if not TYPE_CHECKING:  # a type checker would take every name for one of ours
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
    __all__ += ["__version__"]
