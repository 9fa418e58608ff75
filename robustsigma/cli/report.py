"""`report`: reduce the finished shards of a run to its report."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from robustsigma.cli.parsing import new_parser

_DESCRIPTION = (
    "Write the report of a run of `evaluate` or `benchmark` whose blocks were made by `--shard i/n`. Blocks that are "
    "missing are named, with the command that makes them."
)


def run(verb: str, arguments: list[str]) -> int | None:
    """Parse the arguments and write the report."""
    parser = new_parser("robustsigma report", _DESCRIPTION)
    parser.add_argument("run", type=str, help="folder of the run")
    found = parser.parse_args(arguments)

    from robustsigma.runs.directory import read_command

    (verb, *rest), folder = read_command(Path(found.run).expanduser())
    if folder.is_dir():
        os.chdir(folder)  # the command may name files in it
    module = import_module(f"robustsigma.cli.{'benchmark' if verb == 'benchmark' else 'evaluate'}")
    status: int | None = module.run(verb, rest, reduce=True)
    return status
