"""The order of pixels by their attribution."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robustsigma.engine import noise
from robustsigma.engine.validation import choice

TieBreak = Literal["random", "index", "reference"]
TIE_BREAKS: tuple[TieBreak, ...] = get_args(TieBreak)


def ranks(heatmaps: Tensor, seeds: Tensor, tie_break: TieBreak = "random") -> Tensor:
    """Return each pixel's place, int64 (B, H * W), 0 for the largest value.

    Args:
        heatmaps: (B, H, W).
        seeds: int64 (B,), of the random order.
        tie_break: the order of equal pixels. "random" draws it from the image's seed, so that a constant map
            is ranked like a random one; "index" goes by increasing index; "reference" is that of
            np.flip(np.argsort(map)) in RISE's code, a sort that leaves equal pixels as they come to lie, on some
            processors otherwise than on others.
    """
    choice("tie_break", tie_break, TIE_BREAKS)
    flat = heatmaps.flatten(1)
    if tie_break == "reference":
        order = torch.from_numpy(np.flip(np.argsort(flat.cpu().numpy(), axis=1), 1).copy()).to(flat.device)
    elif tie_break == "index":
        order = flat.argsort(dim=1, stable=True, descending=True)
    else:
        shuffled = noise.uniform(noise.fold(seeds, "ties"), (flat.shape[1],), torch.float64).argsort(dim=1, stable=True)
        order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, stable=True, descending=True))
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def tied_share(heatmaps: Tensor) -> Tensor:
    """Return (B,), the share of pixels whose value another pixel of the map has as well."""
    ordered = heatmaps.flatten(1).sort(dim=1).values
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = same.new_zeros(len(same), 1)
    return (torch.cat([edge, same], 1) | torch.cat([same, edge], 1)).double().mean(1)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return the rank correlation (B,) of two batches of maps (B, H, W); equal pixels share the mean of their places.

    NaN where a map is constant.
    """
    return pearson(_mean_ranks(first.flatten(1)), _mean_ranks(second.flatten(1)))


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of the last dimension's entries, NaN where one of the two does not vary."""
    a, b = (values.double() - values.double().mean(-1, keepdim=True) for values in (first, second))
    # Rounding leaves a constant with a little variance: only what is equal to the last bit does not vary.
    varies = (first.amax(-1) > first.amin(-1)) & (second.amax(-1) > second.amin(-1))
    size = a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt()
    return torch.where(varies & (size > 0), (a * b).sum(-1) / size.where(size > 0, torch.ones_like(size)), torch.nan)


def _mean_ranks(flat: Tensor) -> Tensor:
    ordered = flat.sort(dim=1).values
    below = torch.searchsorted(ordered, flat.contiguous(), right=False)
    upto = torch.searchsorted(ordered, flat.contiguous(), right=True)
    return (below + upto - 1).double() / 2
