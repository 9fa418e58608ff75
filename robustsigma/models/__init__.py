"""Small networks for the embedded datasets, and networks by name."""

from robustsigma.models.small import SmallCNN

__all__ = ["SmallCNN"]
