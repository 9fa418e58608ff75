"""Datasets in [0, 1], and the Lightning module that perturbs their batches on the device."""

from typing import TYPE_CHECKING, Any

from robustsigma.data.array_files import CorruptionArrays, MedMNIST
from robustsigma.data.baggage import Baggage
from robustsigma.data.builtin_digits import Digits, MNIST5k
from robustsigma.data.dataset_spec import ArrayDataset, Batch, DatasetSpec, Split
from robustsigma.data.datasets import Datasets
from robustsigma.data.image_folder import ImageFolder
from robustsigma.data.image_table import ImageTable
from robustsigma.data.saliency_bench import SaliencyBench
from robustsigma.data.torchvision_dataset import Torchvision
from robustsigma.data.transforms import Albumentations

if TYPE_CHECKING:
    from robustsigma.data.module import RobustDataModule

__all__ = [
    "Albumentations",
    "ArrayDataset",
    "Baggage",
    "Batch",
    "CorruptionArrays",
    "DatasetSpec",
    "Datasets",
    "Digits",
    "ImageFolder",
    "ImageTable",
    "MNIST5k",
    "MedMNIST",
    "RobustDataModule",
    "SaliencyBench",
    "Split",
    "Torchvision",
]


def __getattr__(name: str) -> Any:
    """Import `RobustDataModule`, and with it Lightning, when it is first used."""
    if name == "RobustDataModule":
        from robustsigma.data.module import RobustDataModule

        return RobustDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
