"""Metrics of attributions and of perturbed images, one value per image, and intervals for their means."""

from robustsigma.engine.metrics.base import (
    AttributionMetric,
    Curve,
    HeatmapMetric,
    MetricContext,
    MetricResult,
    MetricSpec,
    Skip,
)
from robustsigma.engine.metrics.calibration import calibration_error
from robustsigma.engine.metrics.corruption_error import corruption_errors, mean_corruption_error
from robustsigma.engine.metrics.diagnostics import CompletenessGap, Cost, RelativeStandardError
from robustsigma.engine.metrics.diff_id import DiffID
from robustsigma.engine.metrics.infidelity import Infidelity
from robustsigma.engine.metrics.insertion_deletion import InsertionDeletion
from robustsigma.engine.metrics.interval import (
    Interval,
    holm,
    mean_band,
    mean_interval,
    p_value,
    paired_difference,
    share_interval,
    significance,
)
from robustsigma.engine.metrics.lerf_morf import LerfMorf
from robustsigma.engine.metrics.localization import Localization
from robustsigma.engine.metrics.magnitude_alignment import MagnitudeAlignedScore
from robustsigma.engine.metrics.monotonicity import Monotonicity
from robustsigma.engine.metrics.pic import PerformanceInformation, aggregate
from robustsigma.engine.metrics.quality import linf, rmse, ssim
from robustsigma.engine.metrics.relevance_accuracy import RelevanceAccuracy
from robustsigma.engine.metrics.sanity_checks import max_sensitivity, randomization, shuffle_parameters, stability
from robustsigma.engine.metrics.sensitivity_n import SensitivityN
from robustsigma.engine.metrics.sparseness import Sparseness

__all__ = [
    "AttributionMetric",
    "CompletenessGap",
    "Cost",
    "Curve",
    "DiffID",
    "HeatmapMetric",
    "Infidelity",
    "InsertionDeletion",
    "Interval",
    "LerfMorf",
    "Localization",
    "MagnitudeAlignedScore",
    "MetricContext",
    "MetricResult",
    "MetricSpec",
    "Monotonicity",
    "PerformanceInformation",
    "RelativeStandardError",
    "RelevanceAccuracy",
    "SensitivityN",
    "Skip",
    "Sparseness",
    "aggregate",
    "calibration_error",
    "corruption_errors",
    "holm",
    "linf",
    "max_sensitivity",
    "mean_band",
    "mean_corruption_error",
    "mean_interval",
    "p_value",
    "paired_difference",
    "randomization",
    "rmse",
    "share_interval",
    "shuffle_parameters",
    "significance",
    "ssim",
    "stability",
]
