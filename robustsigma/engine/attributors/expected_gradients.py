"""Expected Gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsigma.engine import noise, validation
from robustsigma.engine.attributors.base import Attribution, Attributor, shares
from robustsigma.engine.attributors.baselines import Function, Given, given, references
from robustsigma.engine.attributors.straight_line import gradient_blocks
from robustsigma.engine.classifier import SCORES, Classifier, Score, target_score

# Noise images that stand in for references where none are given.
_STAND_INS = 32


@dataclass(frozen=True)
class ExpectedGradients(Attributor):
    """EG_i = E over references r and t ~ U(0, 1) of (x_i - r_i) dF(r + t (x - r))/dx_i (Erion et al., 2021, eq. 3).

    Each draw is a path of one point, in the result's `confidence` (image, point, reference), `steps` and
    `stderr`. `drop` is F(x) less the mean of F over the drawn references; values sum to it in expectation only.
    `endpoint` is the reference of the first draw. An image's references are drawn without replacement, and again
    from all when all are used.

    Args:
        draws: gradients averaged.
        references: (R, C, H, W) in [0, 1], usually training images, or a function of images, or of images and seeds.
            None stands for 32 uniform noise images, which need no data but are no samples of it.
        stratified: draw the j-th t from the j-th of `draws` equal parts of [0, 1], which lowers the variance of the
            mean; the standard error, taken over draws as if they were independent, is then an upper bound.
        score: F.
        index: int64 (draws,) or (B, draws), the references to use instead of drawn ones.
        t: (draws,) or (B, draws) in [0, 1], the points to use instead of drawn ones.
        variant: "authors" rounds every gradient to float32, whatever the precision of the network, as their code does.
    """

    draws: int = 200
    references: Function | Tensor | None = None
    stratified: bool = True
    score: Score = "logit"
    index: Tensor | Given | None = None
    t: Tensor | Given | None = None
    variant: Literal["sound", "authors"] = "sound"

    def __post_init__(self) -> None:
        validation.integer("draws", self.draws, 1)
        validation.choice("score", self.score, SCORES)
        validation.choice("variant", self.variant, ("sound", "authors"))
        if self.references is not None and not callable(self.references):
            object.__setattr__(self, "references", given("references", self.references, floating=True))
        object.__setattr__(self, "index", given("index", self.index, floating=False))
        object.__setattr__(self, "t", given("t", self.t, floating=True))

    @property
    def stochastic(self) -> bool:
        """Whether references or places on the lines are drawn."""
        return self.index is None or self.t is None

    def attribute(
        self, classifier: Classifier, images: Tensor, target: Tensor, logits: Tensor, seeds: Tensor
    ) -> Attribution:
        """Return EG; `draws` forward and backward passes, and one forward pass for each reference that was drawn.

        The references' passes are counted once for the batch, spread over its images.
        """
        count, device = len(images), images.device
        assert self.references is None or callable(self.references)  # a tensor was wrapped
        bank = references(self.references, images, seeds, classifier.bounds, _STAND_INS)
        index, t = self._index(len(bank), seeds), self._t(images, seeds)
        call = (classifier, images, target, self.score)
        # A pass gives a reference's score for every target, whichever images drew it.
        drawn, place = index.unique(return_inverse=True)
        seen = classifier.logits(bank[drawn])
        low = torch.stack([target_score(seen[column], target, self.score) for column in place.T], 1).to(images.dtype)
        high = target_score(logits, target, self.score).to(images.dtype)

        values, curve = torch.zeros_like(images), torch.empty_like(t)
        # Sums of the maps and of their squares, in double precision since their difference is taken.
        maps = torch.zeros(2, count, *images.shape[2:], dtype=torch.float64, device=device)
        for block in gradient_blocks(*call, t, lambda rows, columns: bank[index[rows, columns]]):
            gradients = block.gradients if self.variant == "sound" else block.gradients.float().to(images.dtype)
            parts = gradients * block.way
            values[block.rows] += parts.sum(1) / self.draws
            heats = parts.abs().sum(2).double()
            maps[:, block.rows] += torch.stack([heats.sum(1), heats.square().sum(1)])
            curve[block.rows, block.columns] = block.scores
        shape = (count, self.draws)
        return Attribution(
            values=values,
            target=target,
            endpoint=bank[index[:, 0]],
            drop=high - low.mean(1),
            confidence=torch.stack([high[:, None].expand(shape), curve, low], 2),
            steps=torch.ones(shape, dtype=torch.int64, device=device),
            converged=torch.ones(shape, dtype=torch.bool, device=device),
            forwards=1 + self.draws + shares(len(drawn), count, device),
            backwards=torch.full((count,), self.draws, device=device),
            stderr=self._stderr(maps).to(images.dtype) if self.draws > 1 else None,
        )

    def _stderr(self, maps: Tensor) -> Tensor:
        total, squares = maps
        spread = (squares - total.square() / self.draws).clamp(min=0)
        return (spread / (self.draws - 1) / self.draws).sqrt()

    def _index(self, size: int, seeds: Tensor) -> Tensor:
        shape = (len(seeds), self.draws)
        if isinstance(self.index, Given):
            index = _expanded("index", self.index, shape).to(seeds)
            if int(index.min()) < 0 or int(index.max()) >= size:
                raise validation.fail("index", f"references in [0, {size - 1}]", f"up to {int(index.max())}")
            return index
        rounds = -(-self.draws // size)
        keys = noise.fold(seeds, "references")
        drawn = noise.uniform(keys, (rounds, size), torch.float32)
        return drawn.argsort(dim=2, stable=True).flatten(1)[:, : self.draws]

    def _t(self, images: Tensor, seeds: Tensor) -> Tensor:
        shape = (len(images), self.draws)
        if isinstance(self.t, Given):
            t = _expanded("t", self.t, shape).to(images)
            if float(t.min()) < 0 or float(t.max()) > 1:
                raise validation.fail("t", "values in [0, 1]", f"[{float(t.min()):.4g}, {float(t.max()):.4g}]")
            return t
        drawn = noise.uniform(noise.fold(seeds, "t"), (self.draws,), images.dtype)
        if not self.stratified:
            return drawn
        return (torch.arange(self.draws, device=images.device) + drawn) / self.draws


def _expanded(name: str, value: Given, shape: tuple[int, int]) -> Tensor:
    """Return an injected tensor as (B, draws)."""
    try:
        return value.tensor.expand(shape)
    except RuntimeError as error:
        raise validation.fail(name, f"shape ({shape[1]},) or {shape}", f"shape {tuple(value.tensor.shape)}") from error
