"""What takes the time of a row: the operations, and how much of it lies outside the network's passes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from experiments.speed.clock import timed
from experiments.speed.limit import Limit
from experiments.speed.nets import Case
from experiments.speed.passes import counted
from experiments.speed.rows import Row
from robustsigma.device import wait

_TOP = 12


@contextmanager
def _inside(network: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Note the seconds of each of the network's forward passes and of each backward pass."""
    seconds: list[float] = []
    began = [0.0]
    grad = torch.autograd.grad

    def start(*_: Any) -> None:
        wait(device)
        began[0] = time.perf_counter()

    def stop(*_: Any) -> None:
        wait(device)
        seconds.append(time.perf_counter() - began[0])

    def backward(*args: Any, **kwargs: Any) -> Any:
        start()
        found = grad(*args, **kwargs)
        stop()
        return found

    hooks = [network.register_forward_pre_hook(start), network.register_forward_hook(stop)]
    torch.autograd.grad = backward
    try:
        yield seconds
    finally:
        torch.autograd.grad = grad
        for hook in hooks:
            hook.remove()


def report(name: str, row: Row, case: Case, limit: Limit) -> str:
    """Return the profile of a row as text."""
    row.call()
    with counted(case.classifier) as made:
        before = limit.sample()
        with _inside(case.classifier, case.device) as inside:
            whole, result = timed(row.call, case.device)
        after = limit.sample()
    passes, within = limit_of([before, after], made), sum(inside)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if case.device.type == "cuda" else [])
    with profile(activities=activities, acc_events=True) as found:
        row.call()
    order = "self_cuda_time_total" if case.device.type == "cuda" else "self_cpu_time_total"
    needed = made if row.needed is None else row.needed(result)
    return "\n".join(
        [
            f"{name} on {case.name}: {row.settings}",
            f"  outside the network's passes: {1 - within / whole:.1%} of the time",
            f"  the passes take {within / passes:.2f} times what they cost at the limit, in {len(inside)} calls",
            f"  made are {made.forwards:g} forward and {made.backwards:g} backward passes, "
            f"needed {needed.forwards:g} and {needed.backwards:g}",
            found.key_averages().table(sort_by=order, row_limit=_TOP, max_name_column_width=48),
        ]
    )


def limit_of(costs: list[Any], made: Any) -> float:
    """Return the seconds of passes at the mean of costs."""
    return sum(cost.of(made) for cost in costs) / len(costs)
