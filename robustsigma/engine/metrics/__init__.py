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
from robustsigma.engine.metrics.infidelity import Infidelity
from robustsigma.engine.metrics.insertion_deletion import InsertionDeletion
from robustsigma.engine.metrics.interval import Interval, mean_band, mean_interval, paired_difference, share_interval
from robustsigma.engine.metrics.localization import Localization
from robustsigma.engine.metrics.pic import PerformanceInformation, aggregate
from robustsigma.engine.metrics.quality import linf, rmse, ssim
from robustsigma.engine.metrics.sanity_checks import randomization, shuffle_parameters, stability
from robustsigma.engine.metrics.sensitivity_n import SensitivityN

__all__ = [
    "AttributionMetric",
    "CompletenessGap",
    "Cost",
    "Curve",
    "HeatmapMetric",
    "Infidelity",
    "InsertionDeletion",
    "Interval",
    "Localization",
    "MetricContext",
    "MetricResult",
    "MetricSpec",
    "PerformanceInformation",
    "RelativeStandardError",
    "SensitivityN",
    "Skip",
    "aggregate",
    "calibration_error",
    "corruption_errors",
    "linf",
    "mean_band",
    "mean_corruption_error",
    "mean_interval",
    "paired_difference",
    "randomization",
    "rmse",
    "share_interval",
    "shuffle_parameters",
    "ssim",
    "stability",
]
