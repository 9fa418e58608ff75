"""SmoothGrad."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor, standard_error
from robustsigma.engine.attributors.controls import Gradient
from robustsigma.engine.attributors.path_methods import rectangles
from robustsigma.engine.classifier import Classifier


@dataclass(frozen=True)
class SmoothGrad(Attributor):
    """The mean of a method's values over noisy copies of the image (Smilkov et al., 2017).

    The noise is normal, with a standard deviation of `std` times the image's range (largest less smallest value); as
    in the paper, pixels may leave [0, 1]. The explained class is that of the image without noise.

    Every copy is a path of one point in `confidence`; `steps` and `converged` are those of the method on the copy.
    `drop` is the mean of the method's drops, so that `gap()` is 0 where the method is complete on every copy.

    Args:
        attributor: the method that is averaged; the paper's is the gradient.
        samples: number of noisy copies.
        std: standard deviation of the noise, as a share of the image's range. The paper recommends 0.1 to 0.2.

    Example:
        >>> SmoothGrad(IntegratedGradients(steps=16), samples=10)(classifier, images, seed=0).stderr
    """

    attributor: Attributor = field(default_factory=Gradient)
    samples: int = 25
    std: float = 0.15
    stochastic = True

    def __post_init__(self) -> None:
        validation.instance("attributor", self.attributor, Attributor)
        validation.integer("samples", self.samples, 1)
        validation.number("std", self.std, 0, open_low=True)

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return the mean; passes are those of the method on every copy, and the image's own forward pass."""
        count, shape = len(images), tuple(images.shape[1:])
        spread = self.std * (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))
        values = torch.zeros_like(images)
        maps = torch.zeros(2, count, *shape[1:], dtype=torch.float64, device=images.device)
        numbers = images.new_zeros(2, count, self.samples)  # each copy's score and drop
        steps, forwards, backwards = torch.zeros(3, count, self.samples, dtype=torch.int64, device=images.device)
        converged = torch.zeros(count, self.samples, dtype=torch.bool, device=images.device)
        order = torch.arange(self.samples, device=images.device)
        for rows, columns in rectangles(steps, classifier.chunk_size_for(images)):
            part = steps[rows, columns].shape
            keys = noise.fold(seeds[rows].repeat_interleave(part[1]), "smooth_grad", order[columns].repeat(part[0]))
            drawn = noise.gaussian(keys, shape, images.dtype).unflatten(0, part)
            noisy = (images[rows, None] + spread[rows].reshape(-1, 1, 1, 1, 1) * drawn).flatten(0, 1)
            found = self._explained(classifier, noisy, target[rows].repeat_interleave(part[1]), keys)
            of_copies = found.values.unflatten(0, part)
            values[rows] += of_copies.sum(1) / self.samples
            heats = of_copies.abs().sum(2).double()
            maps[:, rows] += torch.stack([heats.sum(1), heats.square().sum(1)])
            first = torch.nan_to_num(found.confidence[:, 0, 0])  # a path that a method leaves out has no score
            numbers[:, rows, columns] = torch.stack([first, found.drop]).unflatten(1, part)
            for counts, more in ((steps, found.steps.sum(1)), (forwards, found.forwards), (backwards, found.backwards)):
                counts[rows, columns] = more.unflatten(0, part)
            converged[rows, columns] = found.all_converged().unflatten(0, part)
        return Attribution(
            values=values,
            target=target,
            endpoint=images,
            drop=numbers[1].mean(1),
            confidence=numbers[0][..., None],
            steps=steps,
            converged=converged,
            forwards=1 + forwards.sum(1),
            backwards=backwards.sum(1),
            stderr=standard_error(maps, self.samples).to(images.dtype) if self.samples > 1 else None,
        )

    def _explained(self, classifier: Classifier, noisy: Tensor, target: Tensor, keys: Tensor) -> Attribution:
        if isinstance(self.attributor, Gradient):
            return self.attributor.without_logits(classifier, noisy, target)
        return self.attributor.attribute(
            classifier, noisy, target, classifier.logits(noisy), noise.fold(keys, "method")
        )
