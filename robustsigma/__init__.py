"""robustsigma turns attributions into hard training samples and measures whether they make a classifier more robust.

Names and subpackages are imported when they are first used, so `import robustsigma` is cheap.
"""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma import benchmarking, cli, data, engine, evaluation, lightning, models, report, runs
    from robustsigma.benchmarking.method_comparison import benchmark
    from robustsigma.benchmarking.stored_maps import StoredMaps
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
        CaptumMethod,
        CrediblePath,
        ExpectedGradients,
        FunctionMethod,
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
        APGD,
        FAB,
        FGSM,
        FMN,
        NFGSM,
        PGD,
        AttackState,
        AttributionMasked,
        AutoAttack,
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
        attack_at_radii,
    )
    from robustsigma.evaluation.model_evaluation import evaluate, robust_accuracy
    from robustsigma.report.heatmaps import overlay

__version__ = "0.2.0"

_MODULES = {
    "robustsigma.benchmarking.method_comparison": ("benchmark",),
    "robustsigma.benchmarking.stored_maps": ("StoredMaps",),
    "robustsigma.engine.attributors": (
        *("AGI", "IDG", "IDGI", "IG2", "SIG", "AttentionAttribution", "AttentionRollout", "Attribution", "Attributor"),
        *("BlurIG", "CaptumMethod", "CrediblePath", "ExpectedGradients", "FunctionMethod", "Gradient"),
        *("GuidedIntegratedGradients", "InputXGradient", "IntegratedGradients", "LeGrad", "LeftIntegratedGradients"),
        *("RandomAttribution", "Sigma", "SmoothGrad"),
    ),
    "robustsigma.engine.classifier": ("Classifier",),
    "robustsigma.engine.perturbations": (
        *("APGD", "FAB", "FGSM", "FMN", "NFGSM", "PGD", "AttackState", "AttributionMasked", "AutoAttack", "Corruption"),
        *("GaussianNoise", "Identity", "Mixture", "MixtureComponent", "PathEnd", "Perturbation", "SampleCache"),
        *("SigmaSample", "Square", "TorchAttack", "attack_at_radii"),
    ),
    "robustsigma.evaluation.model_evaluation": ("evaluate", "robust_accuracy"),
    "robustsigma.report.heatmaps": ("overlay",),
}

if not TYPE_CHECKING:  # a type checker would take every name for one of ours
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
    __all__ += ["__version__"]
