"""Training with Lightning: a module that knows no attack, and callbacks that watch the augmentation and robustness."""

from robustsigma.training.callbacks import AugmentationStatistics, SafetensorsExport
from robustsigma.training.checkpoint import LastCheckpoint, RobustCheckpoint
from robustsigma.training.checkpoint_io import AtomicCheckpointIO
from robustsigma.training.lit_classifier import LitClassifier
from robustsigma.training.overfitting import CatastrophicOverfitting, OverfittingMonitor
from robustsigma.training.sample_labels import SampleLabels

__all__ = [
    "AtomicCheckpointIO",
    "AugmentationStatistics",
    "CatastrophicOverfitting",
    "LastCheckpoint",
    "LitClassifier",
    "OverfittingMonitor",
    "RobustCheckpoint",
    "SafetensorsExport",
    "SampleLabels",
]
