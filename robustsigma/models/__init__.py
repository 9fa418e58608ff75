"""Small networks for the embedded datasets, networks by name, and their files."""

from robustsigma.models.architecture import Architecture, network
from robustsigma.models.cifar_resnet import CifarResNet
from robustsigma.models.named import model
from robustsigma.models.pretrained import Pretrained
from robustsigma.models.same_padding import with_same_padding
from robustsigma.models.saved import ModelCard, load_model, save_model
from robustsigma.models.small import SmallCNN

__all__ = [
    "Architecture",
    "CifarResNet",
    "ModelCard",
    "Pretrained",
    "SmallCNN",
    "load_model",
    "model",
    "network",
    "save_model",
    "with_same_padding",
]
