"""Starts the processes of `--processes`: each runs the same verb and takes its share of the jobs."""

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


def shared(processes: int, verb: str, arguments: Sequence[str]) -> int | None:
    """Run a verb in several processes and return its exit status; or None where this process is to run it itself.

    Args:
        processes: how many; 1 and a process that was launched run it themselves.
        verb: of the command line.
        arguments: the rest of the command line.

    Raises:
        OSError: a process died.
    """
    integer("processes", processes, 1)
    if processes == 1 or world_size() > 1:
        return None
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells of each that it ends
    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    # As many threads in each as one process has, for a training rounds by their number. They sleep while they wait,
    # else those of one process would hold the cores from another's: read when a process starts, so set here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.start_processes(
        _child, (processes, store.port, verb, list(arguments)), processes, join=False, start_method="spawn"
    )
    try:
        while not context.join():
            pass
    except ProcessExitedException as error:
        if error.signal_name is None:
            return int(error.exit_code)  # it has told why
        told = f"process {error.error_index} of {processes} was ended by {error.signal_name}"
        raise ChildProcessError(f"{told}. What is finished is kept: run the command again to go on") from error
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
    from robustsigma.cli.main import main

    sys.exit(main([verb, *arguments]))
