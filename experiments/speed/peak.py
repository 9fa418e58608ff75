"""How near a network's cheapest passes come to what the device can compute: its rate of large matrix products.

A peer on the plain network can be slower than the limit only by what the plain network's passes leave of that rate.
"""

from __future__ import annotations

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.speed.clock import timed
from experiments.speed.limit import KINDS, Limit

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices


def operations(limit: Limit) -> dict[str, float]:
    """Return multiplications and additions of a pass of each kind, for one image.

    Backwards to the image takes as many as forwards: weights get no gradient, and attention's products, which take
    twice as many, are few.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        limit.call("forward")
    once = counter.get_total_flops() / limit.best["forward"][1]
    return {"forward": once, "pair": 2 * once}


def shares(limit: Limit, repeats: int) -> dict[str, float]:
    """Return each kind of pass's rate as a share of the rate of matrix products; medians of turns."""
    device = limit.device
    side = _SIDE[device.type]
    source = torch.Generator(device).manual_seed(0)
    a, b = (torch.rand(side, side, device=device, generator=source) for _ in range(2))
    needed = operations(limit)
    torch.mm(a, b)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        rate = 2 * side**3 / timed(lambda: torch.mm(a, b), device)[0]
        cost = limit.sample()
        for kind in KINDS:
            found[kind].append(needed[kind] / getattr(cost, kind) / rate)
    return {kind: statistics.median(values) for kind, values in found.items()}
