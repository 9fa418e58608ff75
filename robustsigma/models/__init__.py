"""Networks by name, their weights and files, and small networks for the built-in datasets."""

from robustsigma.models.architecture import Architecture, network
from robustsigma.models.model_files import ModelCard, load_model, save_model
from robustsigma.models.pretrained import Pretrained, model
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.small_networks import CifarResNet, CifarResNet18, SmallCNN

__all__ = [
    "Architecture",
    "CifarResNet",
    "CifarResNet18",
    "ModelCard",
    "Pretrained",
    "SmallCNN",
    "load_model",
    "model",
    "network",
    "save_model",
    "with_same_padding",
]
