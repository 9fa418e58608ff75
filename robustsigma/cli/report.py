"""`report`: reduce the finished shards of a run to its report."""

from __future__ import annotations

import argparse
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

    own = Path(found.run).expanduser().absolute()
    (verb, *rest), folder = read_command(own)
    if folder.is_dir():
        os.chdir(folder)  # the command may name files in it
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--out", type=Path)
    before, others = named.parse_known_args(rest)
    if before.out is None or before.out.expanduser().resolve() != own.resolve():  # copied or moved since
        rest = [*others, f"--out={own}"]
    module = import_module(f"robustsigma.cli.{'benchmark' if verb == 'benchmark' else 'evaluate'}")
    status: int | None = module.run(verb, rest, reduce=True)
    return status
