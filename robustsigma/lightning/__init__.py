"""Everything that touches Lightning: a data module that perturbs batches, a ready-made classifier, and callbacks."""

from robustsigma.lightning.augmentation_statistics import AugmentationStatistics
from robustsigma.lightning.batch import Batch, BatchInfo
from robustsigma.lightning.checkpoints import AtomicCheckpointIO, LastCheckpoint, RobustCheckpoint
from robustsigma.lightning.data_module import RobustDataModule
from robustsigma.lightning.lit_classifier import LitClassifier
from robustsigma.lightning.overfitting import CatastrophicOverfitting, OverfittingMonitor
from robustsigma.lightning.safetensors_export import SafetensorsExport
from robustsigma.lightning.sample_labels import SampleLabels
from robustsigma.lightning.training_perturbation import Ramp

__all__ = [
    "AtomicCheckpointIO",
    "AugmentationStatistics",
    "Batch",
    "BatchInfo",
    "CatastrophicOverfitting",
    "LastCheckpoint",
    "LitClassifier",
    "OverfittingMonitor",
    "Ramp",
    "RobustCheckpoint",
    "RobustDataModule",
    "SafetensorsExport",
    "SampleLabels",
]
