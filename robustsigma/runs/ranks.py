"""The ranks of one run: processes that a launcher has started, which share its blocks.

`robustsigma … --devices N`, torchrun, SLURM, MPI and LSF start them; Lightning Fabric detects which. Each rank computes
whole blocks, and whole trainings if these use one device, as if it were alone, and writes them to the run's folder, so
the results are bit-identical to those of one process. Ranks exchange lists of jobs and wait for each other; results go
through the folder.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

import torch
from torch import distributed

from robustsigma.engine.validation import fail
from robustsigma.runs.directory import output_folder

T = TypeVar("T")
_LONGEST = timedelta(days=365)  # that a rank waits for one that is still at work; a dead one is noticed at once
_ARRIVE_WITHIN = timedelta(minutes=10)  # that a rank waits at the start for the others
_VISIBLE_WITHIN = 20.0  # seconds after which a file of another machine must be visible
_runs = itertools.count()


def world_size() -> int:
    """Return how many ranks a launcher has started, of which this process is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main_process() -> bool:
    """Return whether this process is alone, or rank 0."""
    return world_size() == 1 or int(os.environ["RANK"]) == 0


def read_cluster() -> None:
    """Set the variables of `env://` where a cluster has started this process and has not set them."""
    if "RANK" in os.environ:
        return
    if "SLURM_NTASKS" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return  # a script of sbatch, not a task of srun
    from lightning_fabric.plugins.environments import LSFEnvironment, MPIEnvironment, SLURMEnvironment

    kind = next((each for each in (SLURMEnvironment, LSFEnvironment, MPIEnvironment) if each.detect()), None)
    if kind is None:
        return
    try:
        cluster = kind()
    except RuntimeError as error:  # it says which option of srun is wrong
        raise ValueError(str(error)) from error
    which = {"RANK": cluster.global_rank(), "LOCAL_RANK": cluster.local_rank(), "WORLD_SIZE": cluster.world_size()}
    where = {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": cluster.main_port}
    os.environ.update({name: str(value) for name, value in {**which, **where}.items()})


class Shard(NamedTuple):
    """Share `number` of `total` of the blocks, from 1; number 0 only prepares what all of them need."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that `i/n` names."""
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal() and int(number) <= int(total) > 0):
            raise fail("shard", "i/n with i from 1 to n, or 0/n to prepare all of them, as in 3/8", repr(text))
        return cls(int(number), int(total))


class Phases(NamedTuple):
    """The phases of a run that a command carries out.

    Attributes:
        prepare: whether missing models are trained, and the images of a benchmark chosen.
        measure: whether missing blocks are measured.
        report: whether attacks are checked and everything is reduced to one report.
        shard: the share of the blocks, or None for all.
        remedy: what to run if an earlier phase is missing; ends the error message.
    """

    prepare: bool = True
    measure: bool = True
    report: bool = True
    shard: Shard | None = None
    remedy: str = "make the same call again"

    @classmethod
    def of_shard(cls, shard: Shard, command: str) -> Phases:
        """Return the phase of a shard of a command; number 0 prepares, and the others need that."""
        return cls(not shard.number, bool(shard.number), False, shard, f"run `{command} --shard 0/{shard.total}` first")

    @classmethod
    def of_report(cls, command: str) -> Phases:
        """Return the phase that is left when all shards of a command are done."""
        return cls(False, False, True, None, f"run `{command}`")


WHOLE = Phases()


class Ranks:
    """The ranks of one run; all of them make the same calls in the same order.

    Args:
        rank: number of this process.
        world_size: number of processes.
        store: a torch.distributed.Store that all of them see; a single process needs none.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: Any = None) -> None:
        self.rank, self.world_size, self._store, self._calls = rank, world_size, store, itertools.count()
        # A group of its own: with a default one, the metrics of a training on one rank would wait for the others.
        self._group: Any = None
        if store is not None:
            store.set(f"here {rank}", "")
            try:
                store.wait([f"here {each}" for each in range(world_size)], _ARRIVE_WITHIN)
            except RuntimeError as error:
                told = f"fewer within {_ARRIVE_WITHIN}; distributed=False computes in this process alone"
                raise fail("distributed", f"all {world_size} processes to make the same call", told) from error
            store = distributed.PrefixStore("group", store)
            self._group = distributed.ProcessGroupGloo(store, rank, world_size, _LONGEST)

    @classmethod
    def join(cls, shared: bool = True) -> Ranks:
        """Return the ranks that a launcher has started, for one run; or this process alone.

        Args:
            shared: whether to share the run at all.
        """
        if shared:
            read_cluster()
        if not shared or world_size() == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        store, rank, size = next(distributed.rendezvous("env://"))
        # torchrun keeps its store, with all that is in it, when it starts the ranks again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(rank, size, distributed.PrefixStore(f"robustsigma/{attempt}/{next(_runs)}", store))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the report."""
        return self.rank == 0

    def deal(self, jobs: Sequence[T]) -> Sequence[T]:
        """Return this rank's jobs."""
        return jobs[self.rank :: self.world_size]

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises:
            ChildProcessError: one of them has ended.
        """
        if self._group is not None:
            try:
                self._group.barrier().wait()
            except RuntimeError as error:
                told = "another process of this run has ended. Finished work is kept: run the command again to resume"
                raise ChildProcessError(told) from error

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, of plain JSON types."""
        if self._group is None:
            return [value]
        key = f"value {next(self._calls)}"
        self._store.set(f"{key} {self.rank}", json.dumps(value))
        self.barrier()
        return [json.loads(self._store.get(f"{key} {rank}")) for rank in range(self.world_size)]

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0, of plain JSON types."""
        return cast("T", self.gather(value if self.is_main else None)[0])

    def main_first(self, call: Callable[[], T]) -> T:
        """Return the result of a call, which rank 0 finishes before the others begin; its error ends all of them."""
        if not self.is_main:
            if not self.broadcast(True):
                raise ChildProcessError("rank 0 of this run has ended, see its message")
            return call()
        done = False
        try:
            found = call()
            done = True
        finally:
            self.broadcast(done)
        return found

    def wait_until_visible(self, ready: Callable[[], bool]) -> None:
        """Wait a while until this machine sees what other ranks have written, which network disks may show later."""
        end = time.monotonic() + _VISIBLE_WITHIN * (self.world_size > 1)
        while not ready() and time.monotonic() < end:
            time.sleep(0.1)

    @contextmanager
    def folder(self, out: str | Path | None) -> Iterator[Path]:
        """Yield the folder of a run, which all ranks see; None is a temporary one.

        Raises:
            ValueError: a folder that cannot be written to, or that not every rank sees.
        """
        if out is not None:
            folder = self.main_first(lambda: output_folder(out))
            self.check_folder(folder)
            yield folder
            return
        with ExitStack() as stack:
            name = ""
            if self.is_main:
                name = stack.enter_context(tempfile.TemporaryDirectory(prefix="robustsigma-"))
            name = self.broadcast(name)
            self.check_folder(Path(name))
            yield Path(name)
            self.barrier()  # others may still read it

    def check_folder(self, folder: Path) -> None:
        """Raise in every rank if some rank sees another folder of this name, such as one on a local disk."""
        if self._group is None:
            return
        path = folder / self.broadcast(f".ranks-{uuid4().hex}")
        if self.is_main:
            path.touch()
        self.barrier()
        self.wait_until_visible(path.is_file)
        for rank, host in enumerate(self.gather("" if path.is_file() else platform.node())):
            if host:
                told = f"{folder}, which rank {rank} (on {host}) does not share with rank 0"
                told += "; name a folder of a file system that all machines see"
                raise fail("out", "a folder that every rank sees", told)
        self.barrier()
        if self.is_main:
            path.unlink()
