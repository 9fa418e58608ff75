"""Datasets of images in [0, 1]."""

from robustsigma.data.array_files import CorruptionArrays, MedMNIST
from robustsigma.data.baggage import Baggage
from robustsigma.data.builtin_digits import Digits, MNIST5k
from robustsigma.data.dataset_spec import ArrayDataset, DatasetSpec, Split
from robustsigma.data.datasets import Datasets
from robustsigma.data.image_folder import ImageFolder
from robustsigma.data.image_table import ImageTable
from robustsigma.data.random_resized_crop import RandomResizedCrop
from robustsigma.data.saliency_bench import SaliencyBench
from robustsigma.data.torchvision_dataset import Torchvision
from robustsigma.data.transforms import Albumentations
from robustsigma.data.verification import verify_images

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
    "RandomResizedCrop",
    "SaliencyBench",
    "Split",
    "Torchvision",
    "verify_images",
]
