"""Training with Lightning: a module that knows no attack, and callbacks that watch the augmentation."""

from robustsigma.training.callbacks import AugmentationStatistics, SafetensorsExport
from robustsigma.training.lit_classifier import LitClassifier

__all__ = ["AugmentationStatistics", "LitClassifier", "SafetensorsExport"]
