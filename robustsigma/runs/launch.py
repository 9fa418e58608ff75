"""Start the ranks of `--devices N`: each runs the same verb and does its part of the blocks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException


class _Ranks(DDPStrategy):
    """Processes without a process group: `Ranks` has its own, and a training on one rank must not see it."""

    def _setup_distributed(self) -> None:
        self._set_world_ranks()


def launch(devices: int, num_nodes: int, main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command line in several processes, and return its exit status.

    Args:
        devices: processes on this machine.
        num_nodes: machines, on each of which the command was started with NODE_RANK, MASTER_ADDR and MASTER_PORT set.
        main: function of the command line, which can be pickled.
        arguments: the command line.

    Raises:
        OSError: a process died.
    """
    # Each process has as many threads as a single one, since rounding in training depends on their number. Waiting
    # threads must sleep, or they would block the cores. OpenMP reads this when a process starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    fabric = Fabric(accelerator="cpu", devices=devices, num_nodes=num_nodes, strategy=_Ranks(start_method="spawn"))
    try:
        fabric.launch(partial(_rank, threads=torch.get_num_threads(), main=main, arguments=arguments))
    except ProcessExitedException as error:
        if error.signal_name is None:
            return int(error.exit_code)  # it has printed why
        message = f"process {error.error_index} of {devices} was ended by {error.signal_name}"
        raise ChildProcessError(f"{message}. Finished work is kept: run the command again to resume") from error
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        for process in multiprocessing.active_children():
            process.join()
        raise
    return 0


def _rank(fabric: Fabric, threads: int, main: Callable[[list[str]], int], arguments: list[str]) -> None:
    torch.set_num_threads(threads)
    cluster = fabric.strategy.cluster_environment  # type: ignore[attr-defined]
    which = {"RANK": fabric.global_rank, "LOCAL_RANK": fabric.local_rank, "WORLD_SIZE": fabric.world_size}
    where = {"MASTER_ADDR": cluster.main_address, "MASTER_PORT": cluster.main_port}
    os.environ.update({name: str(value) for name, value in {**which, **where}.items()})
    status = main(arguments)
    if status:
        sys.exit(status)
