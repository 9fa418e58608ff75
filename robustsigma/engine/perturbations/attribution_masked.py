"""A perturbation applied only where an attribution map is high, or low."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors import Attributor, Gradient
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.ball import Norm
from robustsigma.engine.perturbations.base import Perturbation, Perturbed
from robustsigma.engine.perturbations.fgsm import FGSM

Where = Literal["high", "low", "random"]


@dataclass(frozen=True)
class AttributionMasked(Perturbation):
    """Apply a perturbation to the pixels where a map of the label's class is highest, or lowest; keep the others.

    The perturbation is computed for the whole image, in every channel, and then restricted to the chosen pixels.

    Args:
        perturbation: what is applied.
        attributor: method whose `heatmap()` ranks the pixels; equal values in the order of rows and columns.
        where: "high" and "low" choose the pixels with the largest or the smallest values. "random" is the control for
            both: the region of "high", moved by an offset that each image's seed draws and continued at the opposite
            border, has the same area and shape elsewhere.
        fraction: share of the pixels that are chosen, at least one.

    Example:
        >>> AttributionMasked(FGSM(8 / 255), where="low", fraction=0.5)(classifier, images, labels, seed=0)
    """

    perturbation: Perturbation = field(default_factory=FGSM)
    attributor: Attributor = field(default_factory=Gradient)
    where: Where = "high"
    fraction: float = 0.3

    def __post_init__(self) -> None:
        validation.instance("perturbation", self.perturbation, Perturbation)
        validation.instance("attributor", self.attributor, Attributor)
        validation.number("fraction", self.fraction, 0, 1, open_low=True)

    @property
    def bound(self) -> tuple[Norm, float] | None:
        """Norm and radius of the perturbation's ball, which fewer pixels do not leave."""
        return self.perturbation.bound

    @property
    def batch_dependent(self) -> bool:
        """Whether the perturbation is."""
        return self.perturbation.batch_dependent

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return the masked perturbation."""
        heat = self.attributor(classifier, images, labels, seed=noise.fold(seeds, "map")).heatmap()
        made = self.perturbation.perturb(classifier, images, labels, noise.fold(seeds, "masked"))
        return replace(made, images=torch.where(self._chosen(heat, seeds)[:, None], made.images, images))

    def _chosen(self, heat: Tensor, seeds: Tensor) -> Tensor:
        """Return which pixels are perturbed, bool (B, H, W)."""
        count, height, width = heat.shape
        size = max(1, round(self.fraction * height * width))
        order = heat.flatten(1).argsort(dim=1, descending=self.where != "low", stable=True)[:, :size]
        if self.where == "random":
            draws = noise.uniform(noise.fold(seeds, "offset"), (2,), torch.float32)
            down, right = ((draws * draws.new_tensor([height, width])).long()).T[..., None]
            order = (order // width + down) % height * width + (order % width + right) % width
        chosen = torch.zeros(count, height * width, dtype=torch.bool, device=heat.device)
        return chosen.scatter_(1, order, True).unflatten(1, (height, width))
