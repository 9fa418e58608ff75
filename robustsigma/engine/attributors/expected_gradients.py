"""Expected Gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor, split_passes, standard_error
from robustsigma.engine.attributors.baselines import BaselineFn, checked_references, references
from robustsigma.engine.attributors.frozen_tensor import FrozenTensor, frozen_tensor
from robustsigma.engine.attributors.path_methods import Line
from robustsigma.engine.classifier import Classifier
from robustsigma.engine.scores import Score, target_score

_STAND_INS = 32  # noise images used as references where none are given


@dataclass(frozen=True)
class ExpectedGradients(Attributor):
    """EG_i = E over references r and t ~ U(0, 1) of (x_i - r_i) dF(r + t (x - r))/dx_i (Erion et al., 2021, eq. 3).

    Each draw is a path of one point, in the result's `confidence` (image, point, reference), `steps` and
    `stderr`. `drop` is F(x) less the mean of F over the drawn references; values sum to it in expectation only.
    `endpoint` is the reference of the first draw. An image's references are drawn without replacement, and again
    from all when all are used. The cost is `draws` forward and backward passes for each image, and one forward pass for
    each reference that was drawn, which the images of the batch share.

    Args:
        draws: gradients averaged.
        references: (R, C, H, W) in [0, 1], usually training images, or a function of images, or of images and seeds.
            None stands for 32 uniform noise images, which need no data but are no samples of it.
        stratified: draw the j-th t from the j-th of `draws` equal parts of [0, 1], which lowers the variance of the
            mean; the standard error, taken over draws as if they were independent, is then an upper bound.
        score: F.
        index: int64 (draws,) or (B, draws), the references to use instead of drawn ones.
        t: (draws,) or (B, draws) in [0, 1], the points to use instead of drawn ones.

    Example:
        >>> ExpectedGradients(references=images)(classifier, images, target, seed=0).heatmap()
    """

    draws: int = 200
    references: BaselineFn | Tensor | FrozenTensor | None = None
    stratified: bool = True
    score: Score = "logit"
    index: Tensor | FrozenTensor | None = None
    t: Tensor | FrozenTensor | None = None

    def __post_init__(self) -> None:
        validation.integer("draws", self.draws, 1)
        object.__setattr__(self, "references", checked_references(self.references))
        object.__setattr__(self, "index", frozen_tensor("index", self.index, floating=False))
        object.__setattr__(self, "t", frozen_tensor("t", self.t, floating=True))

    @property
    def stochastic(self) -> bool:
        """Whether references or places on the lines are drawn."""
        return self.index is None or self.t is None

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return EG."""
        count, device = len(images), images.device
        found = references(self.references, images, seeds, classifier.bounds, _STAND_INS)
        index, t = self._index(len(found), seeds), self._t(images, seeds)
        # One pass gives a reference's score for every target, whichever images drew it.
        drawn, place = index.unique(return_inverse=True)
        seen = classifier.logits(found[drawn])
        low = torch.stack([target_score(seen[column], target, self.score) for column in place.T], 1).to(images.dtype)
        high = target_score(logits, target, self.score).to(images.dtype)

        first = found[index[:, 0]]
        starts = lambda rows, columns: found[index[rows, columns]]  # noqa: E731
        line = Line(classifier, images, first, target, self.score, high, low[:, 0], starts)
        values, curve = torch.zeros_like(images), torch.empty_like(t)
        # Sums of the maps and of their squares, in double precision since their difference is taken.
        maps = torch.zeros(2, count, *images.shape[2:], dtype=torch.float64, device=device)
        for part in line.gradients(t):
            products = part.gradients * part.delta
            values[part.rows] += products.sum(1) / self.draws
            heats = products.abs().sum(2).double()
            maps[:, part.rows] += torch.stack([heats.sum(1), heats.square().sum(1)])
            curve[part.rows, part.columns] = part.scores
        shape = (count, self.draws)
        return Attribution(
            values=values,
            target=target,
            endpoint=first,
            drop=high - low.mean(1),
            confidence=torch.stack([high[:, None].expand(shape), curve, low], 2),
            steps=torch.ones(shape, dtype=torch.int64, device=device),
            converged=torch.ones(shape, dtype=torch.bool, device=device),
            forwards=1 + self.draws + split_passes(len(drawn), count, device),
            backwards=torch.full((count,), self.draws, device=device),
            stderr=standard_error(maps, self.draws).to(images.dtype) if self.draws > 1 else None,
        )

    def _index(self, size: int, seeds: Tensor) -> Tensor:
        if isinstance(self.index, FrozenTensor):
            return self.index.expanded("index", (len(seeds), self.draws), seeds, size - 1)
        keys = noise.fold(seeds, "references")
        drawn = noise.uniform(keys, (-(-self.draws // size), size), torch.float32)
        return drawn.argsort(dim=2, stable=True).flatten(1)[:, : self.draws]

    def _t(self, images: Tensor, seeds: Tensor) -> Tensor:
        if isinstance(self.t, FrozenTensor):
            return self.t.expanded("t", (len(images), self.draws), images)
        drawn = noise.uniform(noise.fold(seeds, "t"), (self.draws,), images.dtype)
        if not self.stratified:
            return drawn
        return (torch.arange(self.draws, device=images.device) + drawn) / self.draws
