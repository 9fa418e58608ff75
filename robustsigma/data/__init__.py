"""Datasets of images in [0, 1]."""

from robustsigma.data.baggage import Baggage
from robustsigma.data.corruption_arrays import CorruptionArrays
from robustsigma.data.datasets import Datasets
from robustsigma.data.digits import Digits
from robustsigma.data.folder import ImageFolder
from robustsigma.data.image_table import ImageTable
from robustsigma.data.medmnist_source import MedMNIST
from robustsigma.data.mnist5k import MNIST5k
from robustsigma.data.saliency_bench import SaliencyBench
from robustsigma.data.source import ArrayDataset, DatasetSpec, Split
from robustsigma.data.torchvision_source import Torchvision
from robustsigma.data.transforms import Albumentations

__all__ = [
    "Albumentations",
    "ArrayDataset",
    "Baggage",
    "CorruptionArrays",
    "DatasetSpec",
    "Datasets",
    "Digits",
    "ImageFolder",
    "ImageTable",
    "MNIST5k",
    "MedMNIST",
    "SaliencyBench",
    "Split",
    "Torchvision",
]
