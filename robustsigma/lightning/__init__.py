"""Everything that touches Lightning: a callback for your own training, a data module, a classifier, and callbacks.

Nothing here loads Lightning before it is used, so that `RobustCallback` needs neither of its two packages in particular.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustsigma.lightning.augmentation_statistics import AugmentationStatistics
    from robustsigma.lightning.batch import Batch, BatchInfo
    from robustsigma.lightning.checkpoints import AtomicCheckpointIO, LastCheckpoint, RobustCheckpoint
    from robustsigma.lightning.data_module import RobustDataModule
    from robustsigma.lightning.lit_classifier import LitClassifier
    from robustsigma.lightning.overfitting import CatastrophicOverfitting, OverfittingMonitor
    from robustsigma.lightning.robust_callback import RobustCallback
    from robustsigma.lightning.safetensors_export import SafetensorsExport
    from robustsigma.lightning.sample_labels import SampleLabels
    from robustsigma.lightning.training_perturbation import Ramp

_MODULES = {
    "AtomicCheckpointIO": "checkpoints",
    "AugmentationStatistics": "augmentation_statistics",
    "Batch": "batch",
    "BatchInfo": "batch",
    "CatastrophicOverfitting": "overfitting",
    "LastCheckpoint": "checkpoints",
    "LitClassifier": "lit_classifier",
    "OverfittingMonitor": "overfitting",
    "Ramp": "training_perturbation",
    "RobustCallback": "robust_callback",
    "RobustCheckpoint": "checkpoints",
    "RobustDataModule": "data_module",
    "SafetensorsExport": "safetensors_export",
    "SampleLabels": "sample_labels",
}
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
    "RobustCallback",
    "RobustCheckpoint",
    "RobustDataModule",
    "SafetensorsExport",
    "SampleLabels",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
