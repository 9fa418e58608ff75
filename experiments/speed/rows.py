"""A row: one call of robustsigma, timed in turns with the limit and with the peers that do the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from experiments.speed import memory
from experiments.speed.clock import summary, timed
from experiments.speed.limit import Limit, mean
from experiments.speed.nets import Case
from experiments.speed.passes import Passes, counted

# Seconds for which a short call is repeated, so that the clock and the machine's other work matter less.
_SHORTEST = 0.5


@dataclass(frozen=True)
class Peer:
    """Another library's call of the same.

    Args:
        name: as the table shows it.
        call: over `images` images.
        images: of its call.
        deviation: of the two results, ours first; None where the two compute different things, and what is compared
            is then the time of a pass.
        tolerance: the most deviation at which they are the same.
    """

    name: str
    call: Callable[[], Any]
    images: int
    deviation: Callable[[Any, Any], float] | None
    tolerance: float = 0.0


@dataclass(frozen=True)
class Row:
    """What is timed.

    Args:
        settings: of the call, as people read them.
        images: of the call.
        call: that is timed.
        needed: passes that the formula needs, from the result; None takes those that were counted.
        reported: passes that the result says were made, where it does.
        peers: that do the same.
    """

    settings: str
    images: int
    call: Callable[[], Any]
    needed: Callable[[Any], Passes] | None = None
    reported: Callable[[Any], Passes] | None = None
    peers: tuple[Peer, ...] = ()


def measure(row: Row, case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the row's numbers: passes, memory, and ratios of times."""
    kept: list[Any] = []
    with counted(case.classifier) as made:
        seconds, held = timed(lambda: memory.peak(lambda: kept.append(row.call()), case.device), case.device)
    result = kept[0]
    loops = range(max(1, int(_SHORTEST / seconds)))
    needed = made if row.needed is None else row.needed(result)
    peers = [_Met(peer, case, result) for peer in row.peers]
    costs, efficiencies, wholes = [], [], []
    for _ in range(repeats):
        before = limit.sample()
        seconds = timed(lambda: [row.call() for _ in loops], case.device)[0] / len(loops)
        cost = mean([before, limit.sample()])
        wholes.append(seconds / row.images / cost.forward)
        efficiencies.append(cost.of(needed) / seconds)
        costs.append(cost)
        for met in peers:
            met.time(seconds / row.images, made.total / row.images)
    found: dict[str, Any] = {
        "settings": row.settings,
        "images": row.images,
        "passes": needed.per(row.images),
        "counted": made.per(row.images),
        "cost_in_forwards": summary(wholes),
        "efficiency": summary(efficiencies) if needed.forwards > 0 else None,
        "pair_in_forwards": summary(cost.pair / cost.forward for cost in costs),
        "memory_mib": held,
        "peers": [met.record() for met in peers],
    }
    if row.reported is not None:
        found["reported"] = row.reported(result).per(row.images)
        found["reported_as_counted"] = found["reported"] == found["counted"]
    return found


class _Met:
    """A peer that ran once beside ours, and is timed."""

    def __init__(self, peer: Peer, case: Case, ours: Any) -> None:
        self.peer, self.case = peer, case
        self.ratios: list[float] = []
        with counted(case.plain) as self.passes:
            theirs = self._call()
        self.deviation = None if peer.deviation is None else float(peer.deviation(ours, theirs))

    def _call(self) -> Any:
        with warnings.catch_warnings(), torch.random.fork_rng(self._devices()):
            warnings.simplefilter("ignore")  # their own
            return self.peer.call()

    def _devices(self) -> list[int]:
        return [] if self.case.device.type == "cpu" else [torch.cuda.current_device()]

    def time(self, seconds: float, passes: float) -> None:
        """Time the peer against our seconds and passes for each image."""
        each = timed(self._call, self.case.device)[0] / self.peer.images
        per_pass = (passes / (self.passes.total / self.peer.images)) if self.peer.deviation is None else 1
        self.ratios.append(each / seconds * per_pass)

    def record(self) -> dict[str, Any]:
        """Return how many times as long the peer takes, and how far its result is from ours."""
        return {
            "name": self.peer.name,
            "images": self.peer.images,
            "passes": self.passes.per(self.peer.images),
            "times_ours": summary(self.ratios),
            "per": "pass" if self.peer.deviation is None else "image",
            "deviation": self.deviation,
            "tolerance": self.peer.tolerance,
            "agrees": self.deviation is None or self.deviation <= self.peer.tolerance,
        }
