"""Attributors: where in the image the evidence for a class is. One paper, one file, one class."""

from robustsigma.engine.attributors.base import Attribution, Attributor
from robustsigma.engine.attributors.integrated_gradients import IntegratedGradients
from robustsigma.engine.attributors.sigma import Sigma

__all__ = ["Attribution", "Attributor", "IntegratedGradients", "Sigma"]
