"""Start the processes of `--processes`: each runs the same verb and does its part of the jobs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from torch import multiprocessing
from torch.distributed import TCPStore
from torch.multiprocessing.spawn import ProcessExitedException

from robustsigma.engine.validation import integer
from robustsigma.runs.processes import world_size

_HERE = "127.0.0.1"


def run_in_processes(processes: int, verb: str, arguments: Sequence[str]) -> int | None:
    """Run a verb in several processes and return its exit status, or None if this process must run it itself.

    Args:
        processes: number of processes. With 1, and in a process that was launched, the result is None.
        verb: verb of the command line.
        arguments: rest of the command line.

    Raises:
        OSError: a process died.
    """
    integer("processes", processes, 1)
    if processes == 1 or world_size() > 1:
        return None
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it reports every process that ends
    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    # Each process has as many threads as a single one, since rounding in training depends on their number. Waiting
    # threads must sleep, or they would block the cores. OpenMP reads this when a process starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.start_processes(
        _child, (processes, store.port, verb, list(arguments)), processes, join=False, start_method="spawn"
    )
    try:
        while not context.join():
            pass
    except ProcessExitedException as error:
        if error.signal_name is None:
            return int(error.exit_code)  # it has printed why
        message = f"process {error.error_index} of {processes} was ended by {error.signal_name}"
        raise ChildProcessError(f"{message}. Finished work is kept: run the command again to resume") from error
    except KeyboardInterrupt:
        for process in context.processes:
            process.terminate()
        for process in context.processes:
            process.join()
        raise
    return 0


def _child(rank: int, processes: int, port: int, verb: str, arguments: list[str]) -> None:
    where = {"MASTER_ADDR": _HERE, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    which = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in {**where, **which}.items()})
    from robustsigma.cli.verbs import main

    sys.exit(main([verb, *arguments]))
