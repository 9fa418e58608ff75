"""Processes that share the jobs of one run: a process that is free takes the next job.

One process does a whole job (a training with its tests, a batch of a benchmark) as if it were alone and saves it in
the run's folder, so the results are bit-identical to those of a single process. A training that is too long for one
GPU belongs to `fit`, under Lightning's DDP.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
_POLL = 0.05  # seconds
_runs = itertools.count()


def world_size() -> int:
    """Return how many processes a launcher (`--processes`, torchrun) has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main_process() -> bool:
    """Return whether this process is alone, or the first of those that a launcher has started."""
    return world_size() == 1 or int(os.environ["RANK"]) == 0


class Processes:
    """The processes of one run; all of them make the same calls in the same order.

    Args:
        rank: rank of this process.
        world_size: number of processes.
        store: a torch.distributed.Store that all of them see; a single process needs none.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: Any = None) -> None:
        self.rank, self.world_size, self.store = rank, world_size, store
        self._counters = itertools.count()

    @classmethod
    def join(cls) -> Processes:
        """Return the processes that a launcher has started, or this one alone, for one run."""
        if world_size() == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        store, rank, size = next(distributed.rendezvous("env://"))
        return cls(rank, size, distributed.PrefixStore(f"robustsigma/{next(_runs)}", store))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the report."""
        return self.rank == 0

    def main_process_first(self, name: str, call: Callable[[], T]) -> T:
        """Return the result of a call; the main process finishes it before the others begin.

        So the others find what it saved in the folder, and only one process reports a mistake.
        """
        if self.world_size == 1:
            return call()
        if not self.is_main:
            self.wait(lambda: self.store.check([name]))
        found = call()
        if self.is_main:
            self.store.set(name, "done")
        return found

    def share(self, name: str, jobs: Sequence[T]) -> Iterator[T]:
        """Yield this process's jobs. Jobs begin in order: a job may wait for an earlier one, not for a later one."""
        if self.world_size == 1:
            yield from jobs
            return
        while (place := self.store.add(name, 1) - 1) < len(jobs):
            yield jobs[place]

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until another process has made something; a single process makes it itself and does not wait."""
        while self.world_size > 1 and not ready():
            time.sleep(_POLL)
            self.store.num_keys()  # fails where the others have ended

    def barrier(self, name: str) -> None:
        """Wait until all processes are here."""
        if self.world_size == 1:
            return
        self.store.add(f"{name}, here", 1)
        self.wait(lambda: self.store.add(f"{name}, here", 0) == self.world_size)
        self.store.add(f"{name}, gone", 1)
        if self.is_main:  # the store may be its own: it leaves last
            self.wait(lambda: self.store.add(f"{name}, gone", 0) == self.world_size)

    def counter(self) -> Callable[[], int]:
        """Return a function that adds one to a count over all processes and returns the new count."""
        name = f"counter {next(self._counters)}"
        alone = itertools.count(1)
        return lambda: next(alone) if self.world_size == 1 else int(self.store.add(name, 1))
