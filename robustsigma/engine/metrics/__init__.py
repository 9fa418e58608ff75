"""Metrics: pure functions that return one value per image, and intervals for their means."""

from robustsigma.engine.metrics.interval import Interval, mean_interval, paired_difference
from robustsigma.engine.metrics.per_sample import PerSample
from robustsigma.engine.metrics.quality import linf, rmse, ssim

__all__ = ["Interval", "PerSample", "linf", "mean_interval", "paired_difference", "rmse", "ssim"]
