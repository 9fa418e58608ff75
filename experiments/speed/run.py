"""Speed in the network's own passes, in ratios, beside every peer: python -m experiments.speed.

    python -m experiments.speed                                     # every row on every network
    python -m experiments.speed --nets resnet18 --rows SIGMA IG PGD
    python -m experiments.speed --nets resnet18 --profile IG        # what takes the time

efficiency = passes that the formula needs x the cost of one at the network's best batch size / measured time, both
taken in turns in one run. The cost is that of the cheapest of four forms of the network: plain, BatchNorm folded,
channels last, both. Peers run in the same turns, on the network as it is; where they compute the same, their results
are compared. All of it, peers too, in full precision but for the rows that are named after what they round to. Rows
that are done lie in --work, and a run of the same line goes on after them.

Writes results/speed_cpu.json (on a GPU speed_cuda.json) and pictures of the same name.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own words, on every start and stop

import torch
from rich.console import Console

from experiments.speed import (
    attributor_rows,
    curves,
    data_rows,
    gaps,
    metric_rows,
    peak,
    perturbation_rows,
    plots,
    profiling,
    rounded_rows,
    table,
    training_rows,
)
from experiments.speed.clock import threads
from experiments.speed.limit import Limit
from experiments.speed.nets import NETS, Case, case, scale
from experiments.speed.rows import Row, measure
from robustsigma.device import best_device
from robustsigma.engine.precision import full_precision
from robustsigma.files import claim, write_atomically
from robustsigma.provenance import Provenance

Build = Callable[[Case], Row]
Measure = Callable[[Case, Limit, int], dict[str, Any]]

CALLS: dict[str, Build] = {**attributor_rows.ROWS, **rounded_rows.ROWS, **perturbation_rows.ROWS, **metric_rows.ROWS}
WHOLE: dict[str, Measure] = {
    "Training": training_rows.measure,
    "Data": data_rows.measure,
    "Cost-curves": curves.cost,
    "Memory-curves": curves.held,
    "Gaps": gaps.measure,
}
# What a network has not, or what says nothing new on one more.
_WIDTH = 150  # of the tables in a file
_ONLY = {"AttentionRollout": ("vit",), "Training": ("small", "resnet18"), "Data": ("small", "resnet18")}


def names(net: str, wanted: list[str] | None, device: torch.device) -> list[str]:
    """Return the rows of a network on a device."""
    left_out = rounded_rows.GPU_ONLY if device.type == "cpu" else ()
    every = [name for name in (*CALLS, *WHOLE) if net in _ONLY.get(name, NETS) and name not in left_out]
    return every if wanted is None else [name for name in every if name in wanted]


class Store:
    """Finished rows in a folder, one file each."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        claim(folder, settings)
        self.folder = folder

    def get(self, net: str, name: str) -> dict[str, Any] | None:
        """Return a row, or None where it is not done."""
        path = self.folder / net / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def put(self, net: str, name: str, row: dict[str, Any]) -> None:
        """Keep a row."""
        write_atomically(self.folder / net / f"{name}.json", (json.dumps(row, indent=1) + "\n").encode())


def _limit(store: Store, subject: Case, repeats: int) -> tuple[Limit, dict[str, Any]]:
    """Return the limit of a network, calibrated once."""
    kept = store.get(subject.name, "limit")
    best = None if kept is None else kept["best"]
    limit = Limit(subject.net, subject.images, subject.scale.batches, repeats, best)
    if kept is None:
        near = peak.shares(limit, repeats)
        kept = {"best": limit.best, "ratios": limit.ratios(), "scale": repr(subject.scale), "share_of_matmul": near}
        store.put(subject.name, "limit", kept)
    return limit, kept


def run(store: Store, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure what is not done; return all that is."""
    device = best_device()
    jobs = [(net, name) for net in options.nets for name in names(net, options.rows, device)]
    done = 0
    nets: dict[str, Any] = {}
    for net in options.nets:
        subject = case(net, device, fast=options.fast)
        limit, kept = _limit(store, subject, options.repeats)
        best = ", ".join(f"{kind} {form} at {batch}" for kind, (form, batch) in limit.best.items())
        console.print(f"{net}: cheapest passes: {best}", markup=False, highlight=False)
        for name in names(net, options.rows, device):
            done += 1
            row, start = store.get(net, name), time.perf_counter()
            if row is None:
                row = _row(name, subject, limit, options.repeats)
                store.put(net, name, row)
            took = time.perf_counter() - start
            said = table.line(name, row)
            console.print(f"[{done}/{len(jobs)}] {net} {said} [{took:.0f} s]", markup=False, highlight=False)
        rows = {name: store.get(net, name) for name in names(net, None, device)}
        nets[net] = {"limit": kept, "rows": {name: row for name, row in rows.items() if row is not None}}
    return {"device": device.type, "nets": nets}


def _row(name: str, subject: Case, limit: Limit, repeats: int) -> dict[str, Any]:
    if name in CALLS:
        return measure(CALLS[name](subject), subject, limit, repeats)
    return WHOLE[name](subject, limit, repeats)


def wrong(results: dict[str, Any]) -> list[str]:
    """Return what may not be: a peer that computes something else, or passes other than the result says."""
    found = []
    for net, each in results["nets"].items():
        for name, row in each["rows"].items():
            if not row.get("reported_as_counted", True):
                found.append(f"{net} {name}: reported {row['reported']}, counted {row['counted']}")
            for peer in row.get("peers", []):
                if not peer["agrees"]:
                    apart, most = peer["deviation"], peer["tolerance"]
                    found.append(f"{net} {name}: {peer['name']} is {apart:.2g} apart, expected at most {most:g}")
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rows", nargs="+", choices=[*CALLS, *WHOLE], help="all by default")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/speed"), help="where finished rows are kept")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--profile", choices=CALLS, help="say what takes the time of a row, and measure nothing")
    parser.add_argument("--fast", action="store_true", help="small, to see that it runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return 1 where results differ that should not."""
    options, console = _options(arguments), Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    with threads(options.threads), full_precision():
        if options.profile:
            for net in options.nets:
                subject = case(net, best_device(), fast=options.fast)
                limit = Limit(subject.net, subject.images, subject.scale.batches[-1:], 2)
                print(profiling.report(options.profile, CALLS[options.profile](subject), subject, limit))
            return 0
        provenance = Provenance("python -m experiments.speed")
        device = best_device()
        settings = {"threads": options.threads, "repeats": options.repeats, "fast": options.fast, "device": device.type}
        settings["scales"] = {net: repr(scale(net, device, fast=options.fast)) for net in NETS}
        results = run(Store(options.work / device.type, settings), options, console)
        results = {"settings": settings, **results, "provenance": provenance.record()}
    stem = f"speed_{results['device']}"
    for name, picture in plots.draw(results).items():
        write_atomically(options.out / f"{stem}_{name}.png", picture)
    path = write_atomically(options.out / f"{stem}.json", (json.dumps(results, indent=1) + "\n").encode())
    for each in table.tables(results):
        console.print(each)
    for problem in wrong(results):
        console.print(problem, style="bold red", markup=False)
    print(path)
    return 1 if wrong(results) else 0
