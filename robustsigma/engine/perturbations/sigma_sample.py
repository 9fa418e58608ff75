"""SIGMA's zero-confidence samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, drawn


@dataclass(frozen=True)
class SigmaSample(Perturbation):
    """x' = the end of one SIGMA walk for the label's class, found with forward passes alone (Henry et al., section 6).

    Args:
        sigma: the walk; its `paths` and `guard` do not matter here. The default descends the logit: where the
            softmax has saturated, p gives no direction at all and log p a weak one, and more samples arrive,
            recognisable as before, if the logit leads (results/sigma_settings.json).
        fraction: share of images that are walked, drawn for each image by its seed; the others stay as they are.
        unconverged: "keep" uses a sample that did not reach epsilon as it is, "original" the unperturbed image.
            Either way it is counted as not converged.
    """

    sigma: Sigma = field(default_factory=lambda: Sigma(alpha=0.01, beta=0.1, objective="logit", paths=1, max_steps=60))
    fraction: float = 1.0
    unconverged: Literal["keep", "original"] = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, Sigma):
            raise validation.fail("sigma", "a Sigma", repr(self.sigma))
        validation.number("fraction", self.fraction, 0, 1)
        validation.choice("unconverged", self.unconverged, ("keep", "original"))

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return zero-confidence samples."""
        result = Perturbed.plain(x)
        rows = torch.arange(len(x), device=x.device)
        if self.fraction < 1:
            rows = rows[drawn(seeds, "fraction") < self.fraction]
        if len(rows) == 0:
            return result
        walk = self.sigma.sample(classifier, x[rows], y[rows], seeds[rows])
        last = walk.curve.gather(1, walk.steps[:, None])[:, 0]
        if not torch.isfinite(last).all():
            raise ValueError("SigmaSample: the network gave non-finite scores")
        converged = last <= self.sigma.epsilon
        ends = walk.ends
        if self.unconverged == "original":
            ends = torch.where(converged[:, None, None, None], ends, x[rows])
        return result.put(rows, Perturbed(ends, torch.ones_like(converged), converged, walk.steps))
