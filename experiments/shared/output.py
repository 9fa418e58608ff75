"""Printing and writing of the experiments' numbers."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustsigma.runs.files import write_atomically
from robustsigma.runs.provenance import Provenance


def output_options(parser: argparse.ArgumentParser, work: str = "runs/experiments") -> None:
    """Add the options that say where an experiment writes, and whether it only checks that it runs."""
    parser.add_argument("--work", type=Path, default=Path(work), help="folder of unfinished work")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--name", help="name of the results file; the name of the script by default")
    parser.add_argument("--fast", action="store_true", help="small version that only checks that the script runs")


def verdict(entry: Mapping[str, Any]) -> str:
    """Return "better", "worse" or "no difference within the interval" for a paired difference."""
    if "mean" not in entry:
        return "no value"
    return "better" if entry["low"] > 0 else "worse" if entry["high"] < 0 else "no difference within the interval"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(cell: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Return a mean with its interval and count."""
    if not cell or "mean" not in cell:
        return "-"
    low, high = number(cell["low"], digits), number(cell["high"], digits)
    return f"{number(cell['mean'], digits)} ({low} to {high}, n {cell['n']})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def orders(gains: Iterable[Mapping[str, Any]], method: str, titles: Mapping[str, str]) -> Iterator[str]:
    """Yield a line per paired difference of a method from another; positive is better."""
    for gain in gains:
        title = titles[gain["metric"]]
        yield f"{gain['model']}, {title}: {method} over {gain['over']} {interval(gain)}: {verdict(gain)}"


def command(script: str, arguments: Sequence[str] | None) -> str:
    """Return the command line of a result; absolute paths are cut to their last part."""
    given = sys.argv[1:] if arguments is None else arguments
    shown = [Path(part).name if Path(part).is_absolute() else part for part in given]
    return shlex.join(["python", f"experiments/{script}.py", *shown])


def write(options: argparse.Namespace, script: str, found: Mapping[str, Any], provenance: Provenance) -> Path:
    """Write the results with the time, versions and hardware of the run."""
    path = options.out / f"{options.name or script}.json"
    text = json.dumps({**found, "run": provenance.record()}, indent=1, allow_nan=False, ensure_ascii=False)
    return write_atomically(path, (text + "\n").encode())
