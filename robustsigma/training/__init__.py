"""Training with Lightning: a module that knows no attack, and callbacks that watch the augmentation and robustness."""

from robustsigma.training.callbacks import AugmentationStatistics, SafetensorsExport
from robustsigma.training.checkpoint import RobustCheckpoint
from robustsigma.training.lit_classifier import LitClassifier
from robustsigma.training.overfitting import CatastrophicOverfitting, OverfittingMonitor
from robustsigma.training.sample_labels import SampleLabels

__all__ = [
    "AugmentationStatistics",
    "CatastrophicOverfitting",
    "LitClassifier",
    "OverfittingMonitor",
    "RobustCheckpoint",
    "SafetensorsExport",
    "SampleLabels",
]
