"""`benchmark`: attributors against metrics, from settings to the report."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from robustsigma.benchmark import benchmark
from robustsigma.benchmark.parsing import PRESETS, parse, settings_of, settings_parser

_DESCRIPTION = (
    "Judge every attribution method by every metric on one or more models, beside random maps and the plain gradient, "
    "and write one HTML report. Started again, it goes on."
)


def run(verb: str, arguments: list[str]) -> None:
    """Parse the arguments and judge."""
    # The preset comes before anything else is parsed: the other options change its settings.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="baggage")
    name = first.parse_known_args(arguments)[0].preset
    parser = settings_parser("robustsigma benchmark", _DESCRIPTION)
    parser.add_argument("--preset", type=str, default=name, help=f"settings to start from: {', '.join(PRESETS)}")
    parser.add_argument("--out", type=str, default="runs/benchmark", help="folder of the report")
    found = parse(parser, name, arguments)
    console = Console()
    command = shlex.join(["robustsigma", "benchmark", *arguments])
    path = benchmark(settings_of(parser, found), Path(found.out), console=console, command=command)
    console.print(f"\nThe report: [bold]{path}[/bold]", soft_wrap=True)
