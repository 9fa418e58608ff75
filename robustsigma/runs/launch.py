"""Start the ranks of `--devices N`: each runs the same verb and does its part of the blocks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException


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
    # Here, since Lightning reads when it is imported which rank a process is.
    from lightning_fabric.plugins.environments import LightningEnvironment

    # Each process has as many threads as a single one, since rounding in training depends on their number. Waiting
    # threads must sleep, or they would block the cores. OpenMP reads this when a process starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    here = LightningEnvironment()  # finds a free port where none is set
    where = {"MASTER_ADDR": here.main_address, "MASTER_PORT": here.main_port, "WORLD_SIZE": devices * num_nodes}
    given = (here.node_rank() * devices, where, torch.get_num_threads(), main, arguments)
    try:
        multiprocessing.start_processes(_rank, given, devices, start_method="spawn")
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


def _rank(
    number: int,
    first: int,
    where: Mapping[str, object],
    threads: int,
    main: Callable[[list[str]], int],
    arguments: list[str],
) -> None:
    torch.set_num_threads(threads)
    variables = {**where, "RANK": first + number, "LOCAL_RANK": number}
    os.environ.update({name: str(value) for name, value in variables.items()})
    status = main(arguments)
    if status:
        sys.exit(status)
