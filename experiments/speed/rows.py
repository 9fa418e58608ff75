"""A row: one call of robustsigma, timed in turns with the limit and with peers that do the same."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.speed.cases import Case
from experiments.speed.limit import Cost, Limit, Passes, counted, seconds


@dataclass(frozen=True)
class Peer:
    """Another library's call of the same computation.

    Args:
        name: name in the table.
        call: the call.
        images: number of images of the call.
        deviation: function of our result and theirs that returns their distance; None where the two compute different
            things, and the times of one pass are compared.
        tolerance: largest deviation at which the results count as the same.
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
        settings: settings of the call, for people.
        images: number of images of the call.
        call: the call that is timed.
        needed: passes that the formula needs, as a function of the result; None uses the counted ones.
        reported: passes that the result reports, as a function of the result; None if it reports none.
        peers: peers that do the same.
    """

    settings: str
    images: int
    call: Callable[[], Any]
    needed: Callable[[Any], Passes] | None = None
    reported: Callable[[Any], Passes] | None = None
    peers: tuple[Peer, ...] = ()


def summary(values: Iterable[float]) -> dict[str, Any]:
    """Return median, extremes and the values of one quantity over repeats."""
    found = [float(value) for value in values]
    return {"median": statistics.median(found), "low": min(found), "high": max(found), "repeats": found}


def mean(*costs: Cost) -> Cost:
    """Return the mean of costs sampled before and after what they are compared with."""
    return Cost(*map(statistics.fmean, zip(*costs, strict=True)))


def peak(call: Callable[[], Any], device: torch.device) -> float:
    """Return the most memory in MiB that a call holds at once, beyond what was held before.

    On a CPU the profiler's record of allocations is summed up, since the process's size never shrinks. It lacks the
    scratch memory of convolution libraries.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        call()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def measure(row: Row, case: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    """Return the row's numbers: passes, memory, and ratios of times."""
    kept: list[Any] = []
    with counted(case.classifier) as made:
        memory = peak(lambda: kept.append(row.call()), case.device)
    result = kept[0]
    needed = made if row.needed is None else row.needed(result)
    costs, times = [], []
    peers = [(peer, *_first(peer, case, result)) for peer in row.peers]
    ratios: list[list[float]] = [[] for _ in peers]
    for _ in range(repeats):
        before = limit.sample()
        times.append(seconds(row.call, limit.least))
        costs.append(mean(before, limit.sample()))
        for (peer, passes, _), found in zip(peers, ratios, strict=True):
            ratio = seconds(lambda peer=peer: _quiet(peer, case)) / peer.images / (times[-1] / row.images)
            if peer.deviation is None:  # the times of one pass
                ratio *= (made.total / row.images) / (passes.total / peer.images)
            found.append(ratio)
    turns = list(zip(times, costs, strict=True))
    found: dict[str, Any] = {
        "settings": row.settings,
        "images": row.images,
        "passes": needed.per(row.images),
        "counted": made.per(row.images),
        "cost_in_forwards": summary(time / row.images / cost.forward for time, cost in turns),
        "efficiency": summary(cost.of(needed) / time for time, cost in turns) if needed.forwards > 0 else None,
        "pair_in_forwards": summary(cost.pair / cost.forward for cost in costs),
        "memory_mib": memory,
        "peers": [
            {
                "name": peer.name,
                "images": peer.images,
                "passes": passes.per(peer.images),
                "times_ours": summary(ratio),
                "per": "pass" if peer.deviation is None else "image",
                "deviation": deviation,
                "tolerance": peer.tolerance,
                "agrees": deviation is None or deviation <= peer.tolerance,
            }
            for (peer, passes, deviation), ratio in zip(peers, ratios, strict=True)
        ],
    }
    if row.reported is not None:
        found["reported"] = row.reported(result).per(row.images)
        found["reported_as_counted"] = found["reported"] == found["counted"]
    return found


def _first(peer: Peer, case: Case, ours: Any) -> tuple[Passes, float | None]:
    """Call a peer once, and return its passes and the distance of its result from ours."""
    with counted(case.plain) as passes:
        theirs = _quiet(peer, case)
    return passes, None if peer.deviation is None else float(peer.deviation(ours, theirs))


def _quiet(peer: Peer, case: Case) -> Any:
    """Call a peer without its own warnings; the global generators are restored."""
    devices = [torch.cuda.current_device()] if case.device.type == "cuda" else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices):
        warnings.simplefilter("ignore")
        return peer.call()
