"""Several processes that share the jobs of one run: whoever is free does the next one.

Each job (a training with its tests, a batch of a benchmark) is done by one process, as if it were alone, and kept in
the run's folder; so the results are those of one process to the last bit, on as many cores or GPUs as there are.
Trainings that are too long for one GPU are `fit`'s, under Lightning's DDP.
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


def together() -> int:
    """Return how many processes a launcher (`--processes`, torchrun) has started together with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def first_of_all() -> bool:
    """Return whether this process is alone, or the first of those that were started together."""
    return together() == 1 or int(os.environ["RANK"]) == 0


class Processes:
    """The processes of one run; all of them make the same calls in the same order.

    Args:
        rank: of this one.
        world: how many there are.
        store: a torch.distributed.Store that all of them see; not needed by one alone.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None) -> None:
        self.rank, self.world, self.store = rank, world, store
        self._counters = itertools.count()

    @classmethod
    def join(cls) -> Processes:
        """Return those that a launcher has started together, or this one alone, for one run."""
        if together() == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        store, rank, world = next(distributed.rendezvous("env://"))
        return cls(rank, world, distributed.PrefixStore(f"robustsigma/{next(_runs)}", store))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes the report."""
        return self.rank == 0

    def main_process_first(self, name: str, call: Callable[[], T]) -> T:
        """Return what a call gives; the first process has finished it before others begin it.

        So what it keeps in the folder is there for them, and only one tells of a mistake.
        """
        if self.world == 1:
            return call()
        if not self.first:
            self.wait(lambda: self.store.check([name]))
        found = call()
        if self.first:
            self.store.set(name, "done")
        return found

    def share(self, name: str, jobs: Sequence[T]) -> Iterator[T]:
        """Yield this process's jobs. They are begun in their order: a job may wait for one before it, not after it."""
        if self.world == 1:
            yield from jobs
            return
        while (place := self.store.add(name, 1) - 1) < len(jobs):
            yield jobs[place]

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until something is there that another process makes; one alone makes it itself."""
        while self.world > 1 and not ready():
            time.sleep(_POLL)
            self.store.num_keys()  # fails where the others have ended

    def barrier(self, name: str) -> None:
        """Wait until all are here."""
        if self.world == 1:
            return
        self.store.add(f"{name}, here", 1)
        self.wait(lambda: self.store.add(f"{name}, here", 0) == self.world)
        self.store.add(f"{name}, gone", 1)
        if self.first:  # the store may be its own: it leaves last
            self.wait(lambda: self.store.add(f"{name}, gone", 0) == self.world)

    def counter(self) -> Callable[[], int]:
        """Return a function that counts one more over all processes and returns how many there are now."""
        name = f"counter {next(self._counters)}"
        alone = itertools.count(1)
        return lambda: next(alone) if self.world == 1 else int(self.store.add(name, 1))
