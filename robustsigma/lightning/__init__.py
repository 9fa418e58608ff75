"""Everything that touches Lightning: a callback for your own training, a data module, a classifier, and callbacks.

Nothing here loads Lightning before it is used: `RobustCallback` needs neither of its two packages in particular.
"""

# ruff: noqa: F401  (type checkers read the imports below, Python the table)

from typing import TYPE_CHECKING

from robustsigma.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from robustsigma.lightning.attribution_monitor import AttributionMonitor
    from robustsigma.lightning.augmentation_statistics import AugmentationStatistics
    from robustsigma.lightning.batch import Batch, BatchInfo
    from robustsigma.lightning.checkpoints import AtomicCheckpointIO, LastCheckpoint, RobustCheckpoint
    from robustsigma.lightning.data_module import RobustDataModule
    from robustsigma.lightning.lit_classifier import LitClassifier
    from robustsigma.lightning.overfitting import CatastrophicOverfitting, OverfittingMonitor
    from robustsigma.lightning.robust_callback import RobustCallback
    from robustsigma.lightning.safetensors_export import SafetensorsExport
    from robustsigma.lightning.sample_labels import SampleLabels
    from robustsigma.lightning.trades import Trades
    from robustsigma.lightning.training_perturbation import Ramp

_MODULES = {
    "robustsigma.lightning.attribution_monitor": ("AttributionMonitor",),
    "robustsigma.lightning.augmentation_statistics": ("AugmentationStatistics",),
    "robustsigma.lightning.batch": ("Batch", "BatchInfo"),
    "robustsigma.lightning.checkpoints": ("AtomicCheckpointIO", "LastCheckpoint", "RobustCheckpoint"),
    "robustsigma.lightning.data_module": ("RobustDataModule",),
    "robustsigma.lightning.lit_classifier": ("LitClassifier",),
    "robustsigma.lightning.overfitting": ("CatastrophicOverfitting", "OverfittingMonitor"),
    "robustsigma.lightning.robust_callback": ("RobustCallback",),
    "robustsigma.lightning.safetensors_export": ("SafetensorsExport",),
    "robustsigma.lightning.sample_labels": ("SampleLabels",),
    "robustsigma.lightning.trades": ("Trades",),
    "robustsigma.lightning.training_perturbation": ("Ramp",),
}

if not TYPE_CHECKING:  # a type checker would take every name for one of ours
    __getattr__, __dir__, __all__ = lazy_imports(__name__, _MODULES)
