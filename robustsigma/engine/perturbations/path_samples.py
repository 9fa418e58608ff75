"""Samples from attribution paths: SIGMA's zero-confidence samples, and the end of any attributor's path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import validation
from robustsigma.engine.attributors import Attributor, Sigma
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.perturbations.base import Perturbation, Perturbed, drawn_rows, uniform_draw


@dataclass(frozen=True)
class SampleCache(validation.Settings):
    """How long training reuses a SIGMA sample.

    Args:
        max_age: number of epochs after the one that made a sample in which it may be reused. 0 keeps it for its own
            epoch only.
        dtype: dtype of the stored samples: "uint8" (pixels rounded to 1/255) or "float16", twice as large.
        most: largest number of stored samples; the oldest are replaced. None stores one of each image.

    Example:
        >>> SigmaSample(cache=SampleCache(max_age=5))  # in the Mixture of a RobustDataModule
    """

    max_age: int = 5
    dtype: Literal["uint8", "float16"] = "uint8"
    most: int | None = None

    def __post_init__(self) -> None:
        validation.integer("max_age", self.max_age, 0)
        if self.most is not None:
            validation.integer("most", self.most, 1)


@dataclass(frozen=True)
class SigmaSample(Perturbation):
    """Return the end of one SIGMA walk for the label's class; forward passes alone (Henry et al., section 6).

    Args:
        sigma: the walk; its `paths`, `min_sum_ratio` and `weighting` are not used. For photographs take
            `Sigma.photographs()`. The default descends the logit: where the softmax has saturated, p gives no direction
            and log p a weak one. With the logit, more samples converge and are as recognizable
            (results/sigma_settings.json).
        fraction: fraction of the images that are walked, drawn by each image's seed; the others stay unchanged.
        cache: reuse in training. An image's sample is used again in later epochs until it is too old, or until the
            network, which it fooled, classifies it correctly. With a cache, an image also keeps its component of a
            mixture and its draw of `fraction` for `max_age` + 1 epochs. `RobustDataModule` stores the samples, since
            it knows the images; a direct call raises ValueError, and an evaluation computes every sample. None
            computes every sample everywhere.
        unconverged: "keep" uses a sample that did not reach epsilon, "original" the unperturbed image instead. Either
            way it is reported as not converged.

    Example:
        >>> info = SigmaSample()(classifier, images, labels, seed=0, return_info=True)
        >>> info.images[info.converged]
    """

    sigma: Sigma = field(default_factory=lambda: Sigma(alpha=0.01, beta=0.1, objective="logit", paths=1, max_steps=60))
    fraction: float = 1.0
    cache: SampleCache | None = None
    unconverged: Literal["keep", "original"] = "keep"

    def __post_init__(self) -> None:
        validation.instance("sigma", self.sigma, Sigma)
        validation.number("fraction", self.fraction, 0, 1)
        validation.optional("cache", self.cache, SampleCache)

    def walked(self, seeds: Tensor, offset: float | None = None) -> Tensor:
        """Return the rows that are walked, int64 (n,), for the seeds (B,) of a batch; `offset` as in `drawn_rows`."""
        if self.fraction == 1:
            return torch.arange(len(seeds), device=seeds.device)
        return drawn_rows(uniform_draw(seeds, "fraction"), 0.0, self.fraction, offset)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return zero-confidence samples."""
        if self.cache is not None:
            expected = "None, since samples are stored by the index of their image: train with a RobustDataModule"
            raise validation.fail("cache", expected, self.cache)
        result = Perturbed.plain(images)
        rows = self.walked(seeds)
        if len(rows) == 0:
            return result
        walk = self.sigma.sample(classifier, images[rows], labels[rows], seeds[rows])
        last = walk.curve.gather(1, walk.steps[:, None])[:, 0]
        if not torch.isfinite(last).all():
            raise validation.not_finite("scores", self)
        converged = last <= self.sigma.epsilon
        ends = walk.ends
        if self.unconverged == "original":
            ends = torch.where(converged[:, None, None, None], ends, images[rows])
        return result.put(rows, Perturbed(ends, torch.ones_like(converged), converged, walk.steps))


@dataclass(frozen=True)
class PathEnd(Perturbation):
    """Return the end point of any attributor's path from the image, for the label's class.

    Args:
        attributor: attributor whose path is walked, with its gradients. For SIGMA, `SigmaSample` needs none.

    Example:
        >>> PathEnd(IG2(steps=20))(classifier, images, labels, seed=0)
    """

    attributor: Attributor = field(default_factory=Sigma)

    def __post_init__(self) -> None:
        validation.instance("attributor", self.attributor, Attributor)

    def perturb(self, classifier: Classifier, images: Tensor, labels: Tensor, seeds: Tensor) -> Perturbed:
        """Return end points; `converged` and `steps` are those of path 0."""
        result = self.attributor(classifier, images, labels, seed=seeds)
        if not torch.isfinite(result.drop).all():
            raise validation.not_finite("scores", self)
        attempted = torch.ones(len(images), dtype=torch.bool, device=images.device)
        return Perturbed(result.endpoint, attempted, result.converged[:, 0], result.steps[:, 0])
