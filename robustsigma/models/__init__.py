"""Small networks for the embedded datasets, networks by name, and their files."""

from robustsigma.models.architecture import Architecture, network
from robustsigma.models.saved import ModelCard, load_model, save_model
from robustsigma.models.small import SmallCNN

__all__ = ["Architecture", "ModelCard", "SmallCNN", "load_model", "network", "save_model"]
