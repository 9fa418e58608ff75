"""The authors' code of AGI and IG2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsigma.engine.attributors.agi import AGI
from robustsigma.engine.attributors.guided_walk import GuidedWalk
from robustsigma.engine.attributors.ig2 import IG2
from robustsigma.engine.scores import Score


class _FromImage(GuidedWalk):
    """Takes every step from the image, not from where the path stands."""

    def origin(self, rows: Tensor, points: Tensor) -> Tensor:
        return self.images[self.image_of[rows]]


@dataclass(frozen=True)
class AuthorsAGI(AGI):
    """AGI's code: it takes every step from the image and counts its whole distance from there each time.

    So values sum to no drop. It also ascends p itself, sums over classes, and takes for a number of `classes` the fixed
    grid range(0, K - 1, K // number).

    Example:
        >>> AuthorsAGI()(classifier, images, target, seed=0).heatmap()
    """

    average: Literal["mean", "sum"] = "sum"

    walk_class: ClassVar[type[GuidedWalk]] = _FromImage
    ascended: ClassVar[Score] = "prob"

    def _drawn(self, count: int, target: Tensor, seeds: Tensor, classes: int) -> Tensor:
        grid = torch.arange(0, classes - 1, max(1, classes // count), device=target.device)
        return grid.expand(len(target), -1)


@dataclass(frozen=True)
class AuthorsIG2(IG2):
    """IG2's code: it walks to every reference with all steps.

    Values are 255 times as large, since its gradients are of images in [0, 1] and its differences in [0, 255].

    Example:
        >>> AuthorsIG2()(classifier, images, target, seed=0).heatmap()
    """

    exhaustive: ClassVar[bool] = True
    unit: ClassVar[float] = 255.0
