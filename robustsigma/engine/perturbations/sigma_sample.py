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
from robustsigma.engine.serialization import safe_in_checkpoints


@safe_in_checkpoints
@dataclass(frozen=True)
class SampleCache(validation.Settings):
    """How long a SIGMA sample that was made in training is used again.

    Args:
        max_age: epochs after the one in which it was made. 0 keeps none beyond its own epoch.
        dtype: in which samples are kept: "uint8" (pixels rounded to 1/255) or "float16", twice as large.
        most: samples kept; the oldest make room. None keeps one of each image.
    """

    max_age: int = 5
    dtype: Literal["uint8", "float16"] = "uint8"
    most: int | None = None

    def __post_init__(self) -> None:
        validation.integer("max_age", self.max_age, 0)
        validation.choice("dtype", self.dtype, ("uint8", "float16"))
        if self.most is not None:
            validation.integer("most", self.most, 1)


@dataclass(frozen=True)
class SigmaSample(Perturbation):
    """x' = the end of one SIGMA walk for the label's class, found with forward passes alone (Henry et al., section 6).

    Args:
        sigma: the walk; its `paths` and `min_sum_ratio` do not matter here. The default descends the logit: where the
            softmax has saturated, p gives no direction at all and log p a weak one, and more samples arrive,
            recognizable as before, if the logit leads (results/sigma_settings.json).
        fraction: share of images that are walked, drawn for each image by its seed; the others stay as they are.
        cache: in training, the sample of an image is used again in later epochs, until it is too old or the network,
            which it had fooled, classifies it right. The samples are kept by `RobustDataModule`, which knows
            the images, where this is its training perturbation or a part of a `Mixture` there; a call of your own is
            refused. As a condition of an evaluation, each sample is made anew. With a cache, an image keeps its part of
            the mixture, and its draw of `fraction`, for `max_age` + 1 epochs. None makes each anew everywhere.
        unconverged: "keep" uses a sample that did not reach epsilon as it is, "original" the unperturbed image.
            Either way it is counted as not converged.
    """

    sigma: Sigma = field(default_factory=lambda: Sigma(alpha=0.01, beta=0.1, objective="logit", paths=1, max_steps=60))
    fraction: float = 1.0
    cache: SampleCache | None = None
    unconverged: Literal["keep", "original"] = "keep"

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, Sigma):
            raise validation.fail("sigma", "a Sigma", repr(self.sigma))
        validation.number("fraction", self.fraction, 0, 1)
        validation.choice("unconverged", self.unconverged, ("keep", "original"))
        validation.optional("cache", self.cache, SampleCache)

    def walked(self, seeds: Tensor) -> Tensor:
        """Return the rows that are walked, int64 (n,), for the seeds (B,) of a batch."""
        if self.fraction == 1:
            return torch.arange(len(seeds), device=seeds.device)
        return (drawn(seeds, "fraction") < self.fraction).nonzero()[:, 0]

    def perturb(self, classifier: Classifier, x: Tensor, y: Tensor, seeds: Tensor) -> Perturbed:
        """Return zero-confidence samples."""
        if self.cache is not None:
            told = "None, as samples are kept by the index of their image: let a RobustDataModule train with them"
            raise validation.fail("cache", told, self.cache)
        result = Perturbed.plain(x)
        rows = self.walked(seeds)
        if len(rows) == 0:
            return result
        walk = self.sigma.sample(classifier, x[rows], y[rows], seeds[rows])
        last = walk.curve.gather(1, walk.steps[:, None])[:, 0]
        if not torch.isfinite(last).all():
            raise validation.not_finite("scores", self)
        converged = last <= self.sigma.epsilon
        ends = walk.ends
        if self.unconverged == "original":
            ends = torch.where(converged[:, None, None, None], ends, x[rows])
        return result.put(rows, Perturbed(ends, torch.ones_like(converged), converged, walk.steps))
